//! An echo server on tokio-websockets: as its own example has it, or corked.

use std::io;
use std::net::SocketAddr;
use std::task::Poll;

use coracle_benches::{peer, tls};
use futures_util::{SinkExt, StreamExt, future};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::unconstrained;
use tokio_rustls::TlsAcceptor;
use tokio_websockets::{Config, Error, Limits, Message, ServerBuilder, WebSocketStream};

/// As many as leave in one write: `poll_write_buf` of tokio-util hands 64 slices to the kernel, and
/// each message is two.
const BATCH: usize = 32;

fn main() -> io::Result<()> {
    let args = peer::Args::from_env();
    // Also the example runs on one thread.
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(serve(args))
}

async fn serve(args: peer::Args) -> io::Result<()> {
    let acceptor = match args.tls {
        true => Some(TlsAcceptor::from(tls::server_config()?)),
        false => None,
    };
    let listener = TcpListener::bind::<SocketAddr>(args.listen).await?;
    peer::announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        // Without it, Nagle's algorithm and delayed acknowledgements would be measured.
        stream.set_nodelay(true)?;
        match acceptor.clone() {
            None => drop(tokio::spawn(unconstrained(echo(stream, args.cork)))),
            Some(acceptor) => drop(tokio::spawn(unconstrained(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    echo(stream, args.cork).await;
                }
            }))),
        }
    }
}

async fn echo(stream: impl AsyncRead + AsyncWrite + Unpin, cork: bool) {
    // The load generator ends connections by a reset; that is no news.
    let _ = if cork { corked(stream).await } else { example(stream).await };
}

/// The library's `examples/echo_server.rs`.
async fn example(stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), Error> {
    let (_request, mut socket) = ServerBuilder::new()
        .config(Config::default().frame_size(usize::MAX))
        .limits(Limits::unlimited())
        .accept(stream)
        .await?;
    while let Some(message) = socket.next().await.transpose()? {
        if message.is_text() || message.is_binary() {
            socket.send(message).await?;
        }
    }
    Ok(())
}

/// Gathers what is ready, then feeds it all and flushes once.
///
/// Feeding between two reads would cork nothing: this library flushes whenever it is read.
async fn corked(stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), Error> {
    let config = Config::default().frame_size(usize::MAX).flush_threshold(usize::MAX);
    let (_request, mut socket) =
        ServerBuilder::new().config(config).limits(Limits::unlimited()).accept(stream).await?;
    // Allocated once it is used, and as large as it was needed.
    let mut batch = Vec::new();
    while gather(&mut socket, &mut batch).await? {
        for message in batch.drain(..) {
            socket.feed(message).await?;
        }
        socket.flush().await?;
    }
    Ok(())
}

/// Waits for one message and takes those behind it; `false` at the end.
async fn gather(
    socket: &mut WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>,
    batch: &mut Vec<Message>,
) -> Result<bool, Error> {
    future::poll_fn(|context| {
        while batch.len() < BATCH {
            match socket.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(message))) => {
                    if message.is_text() || message.is_binary() {
                        batch.push(message);
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) => return Poll::Ready(Ok(false)),
                Poll::Pending if batch.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(true))
    })
    .await
}

//! An echo server on tokio-tungstenite: as its own example has it, or corked.

use std::io;
use std::task::Poll;

use coracle_benches::{peer, tls};
use futures_util::{SinkExt, StreamExt, TryStreamExt, future};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// The best of 4 to 128 KiB over the rows together: the library clears this much before every read,
/// and a large message needs a read for each so much.
const READ_BUFFER_BYTES: usize = 8 * 1024;

fn main() -> io::Result<()> {
    let args = peer::Args::from_env();
    if args.cork {
        // One thread has no queue between threads to pay for.
        tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(serve(args))
    } else {
        example(args)
    }
}

#[tokio::main]
async fn example(args: peer::Args) -> io::Result<()> {
    serve(args).await
}

async fn serve(args: peer::Args) -> io::Result<()> {
    let acceptor = match args.tls {
        true => Some(TlsAcceptor::from(tls::server_config()?)),
        false => None,
    };
    let listener = TcpListener::bind(args.listen).await?;
    peer::announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        // Without it, Nagle's algorithm and delayed acknowledgements would be measured.
        stream.set_nodelay(true)?;
        match acceptor.clone() {
            None => drop(tokio::spawn(echo(stream, args.cork))),
            Some(acceptor) => drop(tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    echo(stream, args.cork).await;
                }
            })),
        }
    }
}

async fn echo(stream: impl AsyncRead + AsyncWrite + Unpin, cork: bool) {
    // The load generator ends connections by a reset; that is no news.
    let _ = if cork { corked(stream).await } else { forwarded(stream).await };
}

/// The library's `examples/echo-server.rs`.
async fn forwarded(stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), Error> {
    let socket = tokio_tungstenite::accept_async(stream).await?;
    let (write, read) = socket.split();
    read.try_filter(|message| future::ready(message.is_text() || message.is_binary()))
        .forward(write)
        .await
}

/// One task, no split and no lock; flushes when no further message is ready.
async fn corked(stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), Error> {
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
    let socket = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await?;
    // No forced yields in the middle of a batch.
    tokio::task::unconstrained(echo_corked(socket)).await
}

async fn echo_corked<S>(mut socket: WebSocketStream<S>) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut fed = false;
    loop {
        let next = future::poll_fn(|context| {
            let next = socket.poll_next_unpin(context);
            if next.is_pending() && fed {
                match socket.poll_flush_unpin(context) {
                    Poll::Ready(Ok(())) => fed = false,
                    Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                    Poll::Pending => {}
                }
            }
            next
        });
        match next.await.transpose()? {
            Some(message) if message.is_text() || message.is_binary() => {
                socket.feed(message).await?;
                fed = true;
            }
            Some(_) => {}
            None => return Ok(()),
        }
    }
}

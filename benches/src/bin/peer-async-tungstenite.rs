//! An echo server on async-tungstenite and smol: as its own example has it, or corked.

use std::io;
use std::net::SocketAddr;
use std::task::Poll;

use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::Error;
use async_tungstenite::tungstenite::protocol::WebSocketConfig;
use coracle_benches::{peer, tls};
use futures_rustls::TlsAcceptor;
use futures_util::{SinkExt, StreamExt, TryStreamExt, future};
use smol::LocalExecutor;
use smol::io::{AsyncRead, AsyncWrite};
use smol::net::{TcpListener, TcpStream};

/// The best of 4 to 128 KiB over the rows together: the library clears this much before every read,
/// and a large message needs a read for each so much.
const READ_BUFFER_BYTES: usize = 8 * 1024;

fn main() -> io::Result<()> {
    let args = peer::Args::from_env();
    let acceptor = match args.tls {
        true => Some(TlsAcceptor::from(tls::server_config()?)),
        false => None,
    };
    if args.cork {
        // One thread runs the sessions and waits for their sockets: nothing crosses threads.
        let executor = LocalExecutor::new();
        smol::block_on(executor.run(serve(args.listen, |stream| match acceptor.clone() {
            None => executor.spawn(echo(stream, true)).detach(),
            Some(acceptor) => executor.spawn(secure(acceptor, stream, true)).detach(),
        })))
    } else {
        smol::block_on(serve(args.listen, |stream| match acceptor.clone() {
            None => smol::spawn(echo(stream, false)).detach(),
            Some(acceptor) => smol::spawn(secure(acceptor, stream, false)).detach(),
        }))
    }
}

async fn serve(listen: SocketAddr, spawn: impl Fn(TcpStream)) -> io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    peer::announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        // Without it, Nagle's algorithm and delayed acknowledgements would be measured.
        stream.set_nodelay(true)?;
        spawn(stream);
    }
}

async fn secure(acceptor: TlsAcceptor, stream: TcpStream, cork: bool) {
    if let Ok(stream) = acceptor.accept(stream).await {
        echo(stream, cork).await;
    }
}

async fn echo(stream: impl AsyncRead + AsyncWrite + Unpin, cork: bool) {
    // The load generator ends connections by a reset; that is no news.
    let _ = if cork { corked(stream).await } else { forwarded(stream).await };
}

/// The library's `examples/echo-server.rs`.
async fn forwarded(stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), Error> {
    let socket = async_tungstenite::accept_async(stream).await?;
    let (write, read) = socket.split();
    read.try_filter(|message| future::ready(message.is_text() || message.is_binary()))
        .forward(write)
        .await
}

/// One task, no split and no lock; flushes when no further message is ready.
async fn corked(stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), Error> {
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
    let socket = async_tungstenite::accept_async_with_config(stream, Some(config)).await?;
    echo_corked(socket).await
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

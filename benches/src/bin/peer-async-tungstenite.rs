//! An echo server on async-tungstenite and smol: as its own example has it, or corked.

use std::io;
use std::net::SocketAddr;
use std::task::Poll;

use async_tungstenite::WebSocketStream;
use async_tungstenite::tungstenite::Error;
use async_tungstenite::tungstenite::protocol::WebSocketConfig;
use coracle_benches::peer;
use futures_util::{SinkExt, StreamExt, TryStreamExt, future};
use smol::LocalExecutor;
use smol::net::{TcpListener, TcpStream};

/// The best of 4 to 128 KiB over the rows together: the library clears this much before every read,
/// and a large message needs a read for each so much.
const READ_BUFFER_BYTES: usize = 8 * 1024;

fn main() -> io::Result<()> {
    let args = peer::Args::from_env();
    if args.cork {
        // One thread runs the sessions and waits for their sockets: nothing crosses threads.
        let executor = LocalExecutor::new();
        smol::block_on(executor.run(serve(args.listen, |stream| {
            executor.spawn(quiet(corked(stream))).detach();
        })))
    } else {
        smol::block_on(serve(args.listen, |stream| {
            smol::spawn(quiet(forwarded(stream))).detach();
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

/// The load generator ends connections by a reset; that is no news.
async fn quiet(echo: impl Future<Output = Result<(), Error>>) {
    let _ = echo.await;
}

/// The library's `examples/echo-server.rs`.
async fn forwarded(stream: TcpStream) -> Result<(), Error> {
    let socket = async_tungstenite::accept_async(stream).await?;
    let (write, read) = socket.split();
    read.try_filter(|message| future::ready(message.is_text() || message.is_binary()))
        .forward(write)
        .await
}

/// One task, no split and no lock; flushes when no further message is ready.
async fn corked(stream: TcpStream) -> Result<(), Error> {
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
    let socket = async_tungstenite::accept_async_with_config(stream, Some(config)).await?;
    echo_corked(socket).await
}

async fn echo_corked(mut socket: WebSocketStream<TcpStream>) -> Result<(), Error> {
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

//! A broadcasting server on tokio-websockets and tokio's broadcast channel: each connection is a task that
//! waits for its socket and for the channel; or corked.

use std::io;
use std::net::SocketAddr;

use coracle_benches::peer;
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio::task::unconstrained;
use tokio_websockets::{Config, Error, Limits, Message, ServerBuilder, WebSocketStream};

/// What may wait for one member. No row has more than 16 in flight, and `slow-member` on a busy machine
/// hardly one second's 200; whoever falls behind this is disconnected.
const CAPACITY: usize = 256;

/// As many as leave in one write: `poll_write_buf` of tokio-util hands 64 slices to the kernel, and
/// each message is two.
const BATCH: usize = 32;

fn main() -> io::Result<()> {
    let args = peer::Args::from_env();
    if args.tls {
        return Err(io::Error::other("this one speaks no TLS"));
    }
    // Also the library's examples run on one thread.
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(serve(args))
}

async fn serve(args: peer::Args) -> io::Result<()> {
    let channel = Sender::new(CAPACITY);
    let listener = TcpListener::bind::<SocketAddr>(args.listen).await?;
    peer::announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        // Without it, Nagle's algorithm and delayed acknowledgements would be measured.
        stream.set_nodelay(true)?;
        tokio::spawn(unconstrained(session(stream, channel.clone(), args.cork)));
    }
}

async fn session(stream: TcpStream, channel: Sender<Message>, cork: bool) {
    let config = Config::default().frame_size(usize::MAX);
    let config = if cork { config.flush_threshold(usize::MAX) } else { config };
    // Before the answer: whoever has that hears everything.
    let messages = channel.subscribe();
    let builder = ServerBuilder::new().config(config).limits(Limits::unlimited());
    let Ok((request, socket)) = builder.accept(stream).await else {
        return;
    };
    // The load generator ends connections by a reset; that is no news.
    let _ = match (request.uri().path() == peer::PUBLISH, cork) {
        (true, _) => {
            drop(messages);
            publish(socket, &channel).await
        }
        (false, false) => hear(socket, messages).await,
        (false, true) => hear_corked(socket, messages).await,
    };
}

/// The messages of this one are for all others.
async fn publish(
    mut socket: WebSocketStream<TcpStream>,
    channel: &Sender<Message>,
) -> Result<(), Error> {
    while let Some(message) = socket.next().await.transpose()? {
        if message.is_text() || message.is_binary() {
            // It fails if nobody listens.
            let _ = channel.send(message);
        }
    }
    Ok(())
}

/// As tokio's own documentation of the channel and of `select!` has it.
async fn hear(
    mut socket: WebSocketStream<TcpStream>,
    mut messages: Receiver<Message>,
) -> Result<(), Error> {
    loop {
        tokio::select! {
            incoming = socket.next() => match incoming.transpose()? {
                Some(_) => {}
                None => return Ok(()),
            },
            message = messages.recv() => match message {
                Ok(message) => socket.send(message).await?,
                Err(error) => return Err(Error::Io(io::Error::other(error))),
            },
        }
    }
}

/// Feeds everything that is there, and flushes once.
async fn hear_corked(
    mut socket: WebSocketStream<TcpStream>,
    mut messages: Receiver<Message>,
) -> Result<(), Error> {
    use broadcast::error::TryRecvError;
    loop {
        tokio::select! {
            // Mostly it is the channel; the socket is looked at when that is empty.
            biased;
            message = messages.recv() => {
                let mut next = message.map_err(|error| Error::Io(io::Error::other(error)))?;
                let mut fed = 0;
                loop {
                    socket.feed(next).await?;
                    fed += 1;
                    if fed == BATCH {
                        break;
                    }
                    next = match messages.try_recv() {
                        Ok(message) => message,
                        Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                        Err(error) => return Err(Error::Io(io::Error::other(error))),
                    };
                }
                socket.flush().await?;
            },
            incoming = socket.next() => match incoming.transpose()? {
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}

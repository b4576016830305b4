//! A broadcasting server on tokio-tungstenite and tokio's broadcast channel: each connection is a task that
//! waits for its socket and for the channel; or corked.

use std::io;

use coracle_benches::peer;
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast::{self, Receiver, Sender};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

/// What may wait for one member. No row has more than 16 in flight, and `slow-member` on a busy machine
/// hardly one second's 200; whoever falls behind this is disconnected.
const CAPACITY: usize = 256;

/// The library clears this much whenever it looks for something to read, which it does once for each
/// delivery; and a member sends nothing but a pong now and then.
const READ_BUFFER_BYTES: usize = 1024;

fn main() -> io::Result<()> {
    let args = peer::Args::from_env();
    if args.tls {
        return Err(io::Error::other("this one speaks no TLS"));
    }
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
    let channel = Sender::new(CAPACITY);
    let listener = TcpListener::bind(args.listen).await?;
    peer::announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        // Without it, Nagle's algorithm and delayed acknowledgements would be measured.
        stream.set_nodelay(true)?;
        tokio::spawn(session(stream, channel.clone(), args.cork));
    }
}

async fn session(stream: TcpStream, channel: Sender<Message>, cork: bool) {
    let config = WebSocketConfig::default();
    let config = if cork { config.read_buffer_size(READ_BUFFER_BYTES) } else { config };
    // Before the answer: whoever has that hears everything.
    let messages = channel.subscribe();
    let mut publishes = false;
    #[expect(clippy::result_large_err, reason = "the library's signature")]
    let look = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        publishes = request.uri().path() == peer::PUBLISH;
        Ok(response)
    };
    let accepted =
        tokio_tungstenite::accept_hdr_async_with_config(stream, look, Some(config)).await;
    let Ok(socket) = accepted else {
        return;
    };
    // The load generator ends connections by a reset; that is no news.
    let _ = match (publishes, cork) {
        (true, _) => {
            drop(messages);
            publish(socket, &channel).await
        }
        (false, false) => hear(socket, messages).await,
        // No forced yields in the middle of a batch.
        (false, true) => tokio::task::unconstrained(hear_corked(socket, messages)).await,
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
                loop {
                    socket.feed(next).await?;
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

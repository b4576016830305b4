//! An echo server on fastwebsockets: as its own example has it, or corked.

mod cork;

use std::io;
use std::sync::Arc;

use coracle_benches::{peer, tls};
use cork::Corked;
use fastwebsockets::{FragmentCollector, OpCode, Role, WebSocket, WebSocketError, upgrade};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

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
    let listener = TcpListener::bind(args.listen).await?;
    peer::announce(listener.local_addr()?)?;
    let http = Arc::new(http1::Builder::new());
    loop {
        let (stream, _) = listener.accept().await?;
        // Without it, Nagle's algorithm and delayed acknowledgements would be measured.
        stream.set_nodelay(true)?;
        let http = http.clone();
        match acceptor.clone() {
            None => drop(tokio::spawn(serve_one(http, stream, args.cork))),
            Some(acceptor) => drop(tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve_one(http, stream, args.cork).await;
                }
            })),
        }
    }
}

async fn serve_one<S>(http: Arc<http1::Builder>, stream: S, cork: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| upgrade::<S>(request, cork));
    // The load generator ends connections by a reset; that is no news.
    let _ = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

/// The library's `examples/echo_server.rs`; only what runs after the upgrade differs.
async fn upgrade<S>(
    mut request: Request<Incoming>,
    cork: bool,
) -> Result<Response<Empty<Bytes>>, WebSocketError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (response, upgraded) = upgrade::upgrade(&mut request)?;
    tokio::spawn(tokio::task::unconstrained(async move {
        let _ = if cork { corked::<S>(upgraded).await } else { example(upgraded).await };
    }));
    Ok(response)
}

async fn example(upgraded: upgrade::UpgradeFut) -> Result<(), WebSocketError> {
    echo(upgraded.await?).await?;
    Ok(())
}

/// The same echo on the socket itself, without hyper's boxed stream between, and behind a cork: the
/// library writes every frame by itself, so only the stream can put them together.
async fn corked<S>(upgraded: upgrade::UpgradeFut) -> Result<(), WebSocketError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let upgraded = upgraded.await?.into_inner().into_inner();
    let Ok(parts) = upgraded.downcast::<TokioIo<S>>() else {
        unreachable!("`serve` hands this very type to hyper");
    };
    let stream = Corked::new(parts.io.into_inner(), parts.read_buf);
    let mut socket = WebSocket::after_handshake(stream, Role::Server);
    // The cork copies small frames and hands large ones on, both without the library's own copy.
    socket.set_writev(true);
    socket.set_writev_threshold(0);
    // The answer to a Close is still held when the echo returns.
    echo(socket).await?.flush().await?;
    Ok(())
}

/// Echoes until the Close, which the library answers, and gives the stream back.
async fn echo<S>(socket: WebSocket<S>) -> Result<S, WebSocketError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut socket = FragmentCollector::new(socket);
    loop {
        let frame = socket.read_frame().await?;
        match frame.opcode {
            OpCode::Close => return Ok(socket.into_inner()),
            OpCode::Text | OpCode::Binary => socket.write_frame(frame).await?,
            _ => {}
        }
    }
}

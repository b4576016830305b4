//! What comes before the request where TLS is spoken: is it TLS, and the TLS handshake. And who looks
//! after the certificates.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_lite::future;

use crate::executor::{Size, Time, Worker};
use crate::http::front::{Approach, Door, LINGER, LINGER_BYTES};
use crate::http::refusal::Refusal;
use crate::hub::Handshake;
use crate::session::Handler;
use crate::tls::{Store, TlsInfo};
use crate::transport::{Tls, Transport};

/// What a TLS connection begins with: a record of the type "handshake" (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether a connection is TLS, and if so the handshake. `None`: the connection has ended.
pub(super) async fn secure<H: Handler>(
    door: &Door<'_, H>,
    tls: &Store,
    mut transport: Transport,
    either: bool,
    mut approach: Approach,
    under_way: &Handshake,
) -> Option<(Transport, Approach)> {
    let deadline = approach.deadline;
    if approach.received.is_empty() {
        match in_time(door, deadline, first_bytes(door.worker, &mut transport)).await {
            Ok(received) => approach.received = received,
            Err(error) => {
                log::debug!("{}: gone before it said anything: {error}", door.name());
                return None;
            }
        }
    }
    if approach.received.first() != Some(&HANDSHAKE_RECORD) {
        if either {
            return Some((transport, approach));
        }
        // A method.
        if approach.received.first().is_some_and(u8::is_ascii_uppercase) {
            let refusal = Refusal::bad_request(
                "this port speaks TLS only, and the request came without: use wss:// or https://",
            );
            door.refuse(&mut transport, &refusal.into_response()).await;
            return None;
        }
    }
    let Some(_under_way) = under_way.tls() else {
        log::debug!("{}: too many TLS handshakes under way: it is turned away", door.name());
        return None;
    };
    let (config, asked) = tls.connection();
    let mut tls = match Tls::new(door.worker, transport, config, approach.received) {
        Ok(tls) => Box::new(tls),
        Err(error) => {
            log::error!("{}: cannot begin a TLS handshake: {error}", door.name());
            return None;
        }
    };
    let mut place = None;
    let handshake = poll_fn(|cx| tls.poll_handshake(cx, &mut place));
    match in_time(door, deadline, handshake).await {
        Ok(()) => {
            let info = TlsInfo::new(tls.state(), asked.get().map(|name| &**name));
            let approach = Approach { tls: Some(info), ..Approach::new(deadline) };
            Some((Transport::Tls(tls), approach))
        }
        Err(error) => {
            log::debug!("{}: {}", door.name(), explain(&error, &asked));
            if error.kind() == io::ErrorKind::InvalidData {
                linger(door.worker, &mut tls).await;
            }
            None
        }
    }
}

/// Does it until the deadline, or until the server stops: there is no request yet that could be
/// answered.
async fn in_time<H: Handler, T>(
    door: &Door<'_, H>,
    deadline: Time,
    step: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let late = async {
        door.worker.sleep_until(deadline).await;
        Err(io::ErrorKind::TimedOut.into())
    };
    let stopping = async {
        door.stopping().await;
        Err(io::Error::other("the server is stopping"))
    };
    future::or(step, future::or(late, stopping)).await
}

/// What the first read brings.
async fn first_bytes(worker: &Worker, transport: &mut Transport) -> io::Result<Vec<u8>> {
    let bytes = poll_fn(|cx| {
        std::task::ready!(transport.poll_readable(cx));
        let mut buffer = worker.pool().take(Size::default());
        let polled = transport.poll_read(cx, &mut buffer);
        let bytes = Vec::from(&*buffer);
        worker.pool().give(buffer);
        polled.map_ok(|_| bytes)
    })
    .await?;
    if bytes.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}

/// Waits a moment for the peer to have read the alert.
async fn linger(worker: &Rc<Worker>, tls: &mut Tls) {
    let discard = async {
        let mut left = LINGER_BYTES;
        while let Ok(received @ 1..) = poll_fn(|cx| tls.poll_discard(cx)).await {
            left = left.saturating_sub(received);
            if left == 0 {
                break;
            }
        }
    };
    future::or(discard, worker.sleep_until(worker.now() + LINGER)).await;
}

/// Why a handshake has failed, for whoever has to find out.
fn explain(error: &io::Error, asked: &OnceLock<Box<str>>) -> String {
    use rustls::{AlertDescription as Alert, Error as Tls};
    let host = asked.get().map_or_else(String::new, |name| format!(" for {name:?}"));
    let hint = match error.get_ref().and_then(|source| source.downcast_ref::<Tls>()) {
        Some(Tls::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::UnsupportedCertificate,
        )) => ": the client does not trust the server's certificate",
        Some(Tls::NoCertificatesPresented) => ": the client has shown no certificate",
        Some(Tls::InvalidCertificate(_)) => ": the client's certificate is refused",
        Some(Tls::PeerIncompatible(_)) => {
            ": the client is too old, or has no cipher or key exchange that the server has"
        }
        Some(Tls::InvalidMessage(_)) => ": this is not TLS, or damaged",
        _ if error.kind() == io::ErrorKind::TimedOut => ": it took too long",
        _ if error.kind() == io::ErrorKind::UnexpectedEof => ": the client has gone",
        _ => "",
    };
    format!("the TLS handshake{host} has failed{hint} ({error})")
}

/// Reads the files again when one has changed, and warns of their end; for ever.
pub(super) async fn watch(worker: &Rc<Worker>, tls: &Arc<Store>, every: Duration) {
    let mut reminder = worker.now() + DAY;
    loop {
        worker.sleep_until(worker.now() + every).await;
        if worker.now() >= reminder {
            reminder = worker.now() + DAY;
            tls.warn_of_expiry();
        }
        let tls = Arc::clone(tls);
        // A file may be on a disk that is far away, and a password costs some 100 ms of work.
        smol::unblock(move || tls.follow()).await;
    }
}

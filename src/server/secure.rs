//! What comes before the request where TLS is spoken: is it TLS, and the TLS handshake. And who looks
//! after the certificates.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::crew::Speaks;
use crate::executor::Worker;
use crate::http::front::{Approach, Door};
use crate::http::refusal::Refusal;
use crate::hub::Handshake;
use crate::metrics::Rejection;
use crate::session::Handler;
use crate::tls::{DAY, Store, TlsInfo};
use crate::transport::{Tls, Transport};

/// What a TLS connection begins with: a record of the type "handshake" (RFC 8446 section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// Whether a connection is TLS, and if so the handshake. `None`: the connection has ended.
pub(super) async fn secure<H: Handler>(
    door: &Door<'_, H>,
    tls: &Store,
    mut transport: Transport,
    speaks: Speaks,
    mut approach: Approach,
    under_way: &Handshake,
) -> Option<(Transport, Approach)> {
    let deadline = approach.deadline;
    if approach.received.is_empty() {
        let first = door.read_some(&mut transport, &mut approach.received);
        if let Err(error) = door.tls_in_time(deadline, first).await {
            log::debug!("{}: gone before it said anything: {error}", door.name());
            door.hub.ledger.rejected(match error.kind() {
                io::ErrorKind::TimedOut => Rejection::Timeout,
                _ if door.hub.shutdown.is_stopping() => Rejection::Stopping,
                _ => Rejection::Gone,
            });
            return None;
        }
    }
    if approach.received.first() != Some(&HANDSHAKE_RECORD) {
        if speaks == Speaks::Either {
            return Some((transport, approach));
        }
        // A method.
        let method = approach.received.first().is_some_and(u8::is_ascii_uppercase);
        if method && speaks == Speaks::Tls {
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
            door.hub.ledger.rejected(Rejection::Internal);
            return None;
        }
    };
    let mut place = None;
    let handshake = poll_fn(|cx| tls.poll_handshake(cx, &mut place));
    match door.tls_in_time(deadline, handshake).await {
        Ok(()) => {
            let info = TlsInfo::new(tls.state(), asked.get().map(|name| &**name));
            let approach = Approach { tls: Some(info), ..Approach::new(deadline) };
            Some((Transport::Tls(tls), approach))
        }
        Err(error) => {
            log::debug!("{}: {}", door.name(), explain(&error, &asked));
            door.hub.ledger.rejected(match error.kind() {
                io::ErrorKind::TimedOut => Rejection::Timeout,
                _ if door.hub.shutdown.is_stopping() => Rejection::Stopping,
                _ => Rejection::Tls,
            });
            if tls.has_failed() {
                door.linger(&mut Transport::Tls(tls)).await;
            }
            None
        }
    }
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

//! An echo server with TLS, which changes its certificate while it runs.
//!
//! ```sh
//! cargo run --release --example wss                   # listens on 127.0.0.1:9001
//! cargo run --release --example wss -- 0.0.0.0:443 --cert chain.pem --key key.pem
//! cargo run --release --example wss -- --client-ca certs/ca.pem   # clients need a certificate
//! cargo run --release --example wss -- --plain                    # takes ws:// as well
//! cargo run --release --example wss -- --min 1.3                  # no TLS 1.2
//! RUST_LOG=coracle=debug cargo run --release --example wss        # why handshakes fail
//! ```
//!
//! Without options it uses the development certificates of `certs/`, whose keys everybody knows. Then, in
//! another terminal:
//!
//! ```sh
//! SSL_CERT_FILE=certs/ca.pem python3 -m websockets wss://localhost:9001/
//! npx wscat --ca certs/ca.pem -c wss://localhost:9001/
//! npx wscat --ca certs/ca.pem --cert certs/client.pem --key certs/client.key -c wss://localhost:9001/
//! ```
//!
//! The first message that a client gets says how it is connected; then every message comes back. Replace
//! the files and wait ten seconds, or send SIGHUP (`kill -HUP PID`): new connections get the new
//! certificate, and the old ones go on. If the new files do not fit together the log says why, and the
//! server goes on with what it has. The password of a key is taken from the variable `TLS_PASSWORD`.

use std::process::ExitCode;
use std::time::Duration;

use coracle::config::{ClientCertificates, Identity, Tls, TlsVersion};
use coracle::{BoxError, OriginPolicy, Request, Server, Session, Upgrade};
use signal_hook::consts::SIGHUP;
use signal_hook::iterator::Signals;

mod common;

const USAGE: &str = "\
usage: wss [ADDRESS] [OPTION]..
  --cert PATH                the certificate chain, PEM
  --key PATH                 its key, PEM; a password is taken from TLS_PASSWORD
  --host NAME=PATH           another certificate for clients that ask for NAME, which may begin with `*.`;
                             chain and key in one file
  --min 1.2|1.3              the oldest version of TLS, 1.2 unless said
  --client-ca PATH           clients need a certificate that is signed by one of these authorities
  --client-ca-optional PATH  clients may have one
  --plain                    takes ws:// on the same port
  --watch SECONDS            how often the files are looked at, 10 unless said; 0: never
  --max-message BYTES        the largest message, 65536 unless said";

const CERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/certs");

/// What the accept hook leaves for the session.
struct Greeting(String);

fn main() -> ExitCode {
    common::exit(serve())
}

fn serve() -> Result<(), BoxError> {
    let mut args = common::Args::parse_with_flags(
        USAGE,
        &[
            "--cert",
            "--key",
            "--host",
            "--min",
            "--client-ca",
            "--client-ca-optional",
            "--watch",
            "--max-message",
        ],
        &["--plain"],
    )?;
    common::log_to(None)?;
    let mut path = |option, default| {
        args.value(option).map_or_else(|| format!("{CERTS}/{default}"), str::to_owned)
    };
    let mut identity = Identity::new(path("--cert", "server.pem"), path("--key", "server.key"));
    if let Ok(password) = std::env::var("TLS_PASSWORD") {
        identity = identity.password(password);
    }
    let mut tls = Tls::with(identity);
    if let Some(host) = args.value("--host") {
        let (name, path) =
            host.split_once('=').ok_or(format!("--host: {host:?} is not NAME=PATH\n{USAGE}"))?;
        tls = tls.host(name, Identity::new(path, path));
    }
    match args.value("--min") {
        None | Some("1.2") => {}
        Some("1.3") => tls = tls.min_version(TlsVersion::V1_3),
        Some(other) => return Err(format!("--min: {other:?} is not 1.2 or 1.3\n{USAGE}").into()),
    }
    if let Some(authorities) = args.value("--client-ca-optional") {
        tls = tls.clients(ClientCertificates::Optional(authorities.into()));
    }
    if let Some(authorities) = args.value("--client-ca") {
        tls = tls.clients(ClientCertificates::Required(authorities.into()));
    }
    if let Some(seconds) = args.number("--watch")? {
        tls = tls.watch((seconds > 0).then(|| Duration::from_secs(seconds as u64)));
    }
    let max_message = args.number("--max-message")?;

    let mut builder = Server::builder().tls(tls).origins(OriginPolicy::Any);
    if let Some(bytes) = max_message {
        builder = builder.configure(|config| config.limits.message_bytes = bytes);
    }
    let builder = match args.flag("--plain") {
        true => builder.bind_tls_or_plain(args.address()),
        false => builder.bind_tls(args.address()),
    };
    let server = builder
        .on_accept(async |request: &Request| Ok(Upgrade::new().data(greeting(request))))
        .on_open(async |session: &Session| match session.data::<Greeting>() {
            Some(greeting) => session.send(greeting.0.as_str()).await,
            None => Ok(()),
        })
        .on_message(async |session, message| session.send(message).await)
        .start()?;
    server.stop_on_signals()?;

    let mut signals = Signals::new([SIGHUP])?;
    let reloading = server.clone();
    // It ends with the process.
    std::thread::spawn(move || {
        for _ in signals.forever() {
            // The server has logged it, and goes on with what it has.
            let _ = reloading.reload_tls();
        }
    });

    common::ready_for("wss", &server);
    server.run()?;
    Ok(())
}

/// How the client is connected.
fn greeting(request: &Request) -> Greeting {
    let Some(tls) = request.tls() else {
        return Greeting("without TLS".to_owned());
    };
    let name = tls.server_name().unwrap_or("no host name");
    let client = match tls.client_certificate() {
        Some(certificate) => certificate.subject(),
        None => "a client without a certificate",
    };
    Greeting(format!("{} with {client}, who asked for {name}", tls.version()))
}

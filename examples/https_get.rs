//! Gets a page by HTTPS, all of it within 30 seconds: resolve, connect, TLS, request and answer under one
//! budget. No step begins to count anew, and a step that is late is named.
//!
//! ```sh
//! cargo run --release --example https_get -- https://example.com/
//! cargo run --release --example https_get -- https://localhost:8443/ --ca certs/ca.pem --seconds 5
//! ```
//!
//! The body goes to standard output, the status and what went wrong to standard error. If the server takes too
//! long you read `error: TLS handshake timed out after 4.9s (budget: 5s)`, or whichever step it was. An answer
//! that is cut short is an error and not printed. One that its length or its last chunk has completed needs no
//! close_notify behind it; one that goes on to the end of the stream does, because anybody between could have
//! ended that.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use coracle::http_types::Uri;
use coracle::{BoxError, Deadline, DeadlineExceeded};
use futures_rustls::TlsConnector;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use smol::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use smol::net::TcpStream;

mod common;

/// What an answer may have, its head included: it is held until it is whole.
const ANSWER_BYTES: u64 = 8 << 20;

/// Where systems keep the authorities that they trust.
const SYSTEM: [&str; 2] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

fn main() -> ExitCode {
    common::exit(run())
}

fn run() -> Result<(), BoxError> {
    let usage = "usage: https_get URL [--ca FILE] [--seconds N]";
    let mut args = common::Args::parse(usage, &["--ca", "--seconds"])?;
    let uri: Uri = args.given().ok_or(usage)?.parse()?;
    let seconds = args.number("--seconds")?.unwrap_or(30);
    let tls = TlsConnector::from(Arc::new(trusting(args.value("--ca"))?));

    let deadline = Deadline::after(Duration::from_secs(seconds as u64));
    let answer = smol::block_on(get(&uri, &tls, deadline))?;
    eprintln!("{}", answer.status);
    io::stdout().write_all(&answer.body)?;
    Ok(())
}

/// A client that trusts the authorities of this file, or those of the system.
fn trusting(file: Option<&str>) -> Result<ClientConfig, BoxError> {
    let file =
        file.or_else(|| SYSTEM.into_iter().find(|path| std::fs::exists(path).is_ok_and(|it| it)));
    let file = file.ok_or("no file with the system's authorities: name one with --ca")?;
    let cannot = |error| format!("cannot use the authorities of {file}: {error}");
    let mut roots = RootCertStore::empty();
    let certificates =
        CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    roots.add_parsable_certificates(certificates.map_err(|error| cannot(error.to_string()))?);
    if roots.is_empty() {
        return Err(cannot("there is none in it".to_owned()).into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

struct Answer {
    status: String,
    body: Vec<u8>,
}

/// Every step under what the ones before have left of the budget.
async fn get(uri: &Uri, tls: &TlsConnector, deadline: Deadline) -> Result<Answer, BoxError> {
    if uri.scheme_str() != Some("https") {
        return Err(format!("{uri} does not begin with https://").into());
    }
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(443);
    // An IPv6 address has brackets in a URL, and nowhere else.
    let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let server = ServerName::try_from(name.clone())?;
    let path = uri.path_and_query().map_or("/", |it| it.as_str());
    // As it was given, but without a user's name.
    let authority = uri.authority().map_or("", |it| it.as_str());
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");

    let resolve = smol::net::resolve((name, port));
    let addresses = step(deadline, "resolve", resolve).await?;
    let tcp = step(deadline, "connect", TcpStream::connect(&addresses[..])).await?;
    let mut stream = step(deadline, "TLS handshake", tls.connect(server, tcp)).await?;
    step(deadline, "request", async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await
    })
    .await?;
    let mut reader = BufReader::new(stream.take(ANSWER_BYTES));
    let answer = step(deadline, "answer", read(&mut reader)).await;
    // Then the end is ours and not the server's.
    if reader.get_ref().limit() == 0 {
        return Err(format!("the answer has {ANSWER_BYTES} bytes or more").into());
    }
    answer
}

/// One step, which says in its error what it was.
async fn step<T>(
    deadline: Deadline,
    name: &'static str,
    step: impl Future<Output = io::Result<T>>,
) -> Result<T, BoxError> {
    deadline.run(name, step).await.map_err(|error| match error.kind() {
        // It has the name of the step.
        _ if DeadlineExceeded::of(&error).is_some() => error.into(),
        ErrorKind::UnexpectedEof => format!("{name}: truncated: {error}").into(),
        _ => format!("{name}: {error}").into(),
    })
}

/// A whole answer (RFC 9112 section 6.3), or an error.
async fn read(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Answer> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            line(reader, &mut head).await?;
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Response::new(&mut headers);
        parsed.parse(&head).map_err(|error| invalid(&format!("no HTTP: {error}")))?;
        let code = parsed.code.unwrap_or_default();
        // "Wait, there is more to come."
        if (100..200).contains(&code) {
            continue;
        }
        let status = format!("{code} {}", parsed.reason.unwrap_or_default());
        let values = |name: &str| {
            let found = parsed.headers.iter().filter(|it| it.name.eq_ignore_ascii_case(name));
            found.map(|it| String::from_utf8_lossy(it.value).trim().to_ascii_lowercase()).collect()
        };
        let (lengths, codings): (Vec<_>, Vec<_>) =
            (values("content-length"), values("transfer-encoding"));
        let mut body = Vec::new();
        match (&lengths[..], &codings[..]) {
            _ if matches!(code, 204 | 304) => {}
            ([], [coding]) if coding == "chunked" => chunks(reader, &mut body).await?,
            ([length], []) => {
                let length = length.parse().map_err(|_| invalid("its length is no number"))?;
                exactly(reader, length, &mut body).await?;
            }
            // Up to the end, which is the server's only if TLS says so.
            ([], []) => drop(reader.read_to_end(&mut body).await?),
            _ => return Err(invalid("its length is said in more than one way")),
        }
        return Ok(Answer { status, body });
    }
}

/// RFC 9112 section 7.1.
async fn chunks(reader: &mut (impl AsyncBufRead + Unpin), body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut size = Vec::new();
        line(reader, &mut size).await?;
        let Ok(httparse::Status::Complete((_, size))) = httparse::parse_chunk_size(&size) else {
            return Err(invalid("a chunk has no size"));
        };
        exactly(reader, size, body).await?;
        let mut end = Vec::new();
        line(reader, &mut end).await?;
        // Behind the last chunk there may be headers, up to an empty line.
        while size == 0 && end != b"\r\n" {
            end.clear();
            line(reader, &mut end).await?;
        }
        match (&end[..], size) {
            (b"\r\n", 0) => return Ok(()),
            (b"\r\n", _) => {}
            _ => return Err(invalid("a chunk does not end where it should")),
        }
    }
}

/// Appends one line with its end.
async fn line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> io::Result<()> {
    reader.read_until(b'\n', line).await?;
    if line.last() == Some(&b'\n') { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// Appends so many bytes. Takes memory for what comes and not for what was promised.
async fn exactly(
    reader: &mut (impl AsyncBufRead + Unpin),
    count: u64,
    body: &mut Vec<u8>,
) -> io::Result<()> {
    let read = reader.take(count).read_to_end(body).await?;
    if read as u64 == count { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}

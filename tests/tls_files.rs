//! Certificates and keys as files: what cannot be used is an error that says what to do, and what changes
//! is used, if it can be.

#[path = "support/secure.rs"]
mod secure;
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use coracle::config::{ClientCertificates, Identity, Tls};
use coracle::{Error, Server};
use secure::*;
use support::*;

/// A copy of a file of `certs/`.
fn copy(scratch: &Scratch, name: &str, from: &str) -> PathBuf {
    scratch.write(name, fs::read(cert(from)).unwrap())
}

/// Why a server with this does not start.
#[track_caller]
fn refused(tls: Tls) -> Error {
    match Server::builder().tls(tls).bind_tls("127.0.0.1:0").start() {
        Ok(_) => panic!("it starts"),
        Err(error) => error,
    }
}

/// The message names the file and has all these words.
#[track_caller]
fn expect(error: &Error, file: &Path, words: &[&str]) {
    let said = error.to_string();
    match error {
        Error::Tls { file: named, .. } => assert_eq!(named, file, "{said}"),
        _ => panic!("{said}"),
    }
    assert!(said.contains(file.to_str().unwrap()), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[track_caller]
fn expect_key(key: &Path, words: &[&str]) {
    expect(&refused(Tls::new(cert("server.pem"), key)), key, words);
}

#[track_caller]
fn expect_certificate(certificate: &Path, words: &[&str]) {
    expect(&refused(Tls::new(certificate, cert("server.key"))), certificate, words);
}

#[test]
fn a_file_that_is_not_there() {
    let scratch = Scratch::new("tls");
    expect_key(&scratch.path("server.key"), &["no such file"]);
    expect_certificate(
        &scratch.path("deep/down/server.pem"),
        &["no such file", "only", scratch.dir().to_str().unwrap()],
    );
    expect_certificate(Path::new("nowhere.pem"), &["no such file", "relative to"]);
    expect_certificate(scratch.dir(), &["directory"]);
    expect_key(&scratch.write("empty.key", "\n"), &["empty"]);
    // To open one is to wait for somebody who writes.
    let pipe = scratch.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    expect_key(&pipe, &["pipe"]);
    expect_certificate(&pipe, &["pipe"]);
}

#[test]
fn a_file_that_is_something_else() {
    let scratch = Scratch::new("tls");
    expect_key(&copy(&scratch, "a.key", "server.pem"), &["certificate and no key", "mixed up"]);
    expect_certificate(
        &copy(&scratch, "a.pem", "server.key"),
        &["key and no certificate", "mixed"],
    );
    expect_certificate(&copy(&scratch, "b.pem", "server-protected.key"), &["mixed up"]);
    expect_certificate(&scratch.write("c.pem", "hello"), &["format is unknown", "PEM"]);
    expect_certificate(&scratch.write("d.crt", der("server.pem")), &["DER", "openssl x509"]);
    expect_key(&scratch.write("d.key", [0x30, 0x82, 1, 2]), &["DER", "openssl pkey"]);
    expect_certificate(&scratch.write("e.p12", [0x30, 0x82, 1, 2]), &["PKCS#12", "openssl pkcs12"]);
    let ssh = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n";
    expect_key(&scratch.write("id_ed25519", ssh), &["OpenSSH", "openssl genpkey"]);
    let csr = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
    expect_certificate(&scratch.write("server.csr", csr), &["request", "authority"]);
    let half = fs::read_to_string(cert("server.pem")).unwrap();
    expect_certificate(&scratch.write("f.pem", &half[..half.len() / 2]), &["not whole"]);
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    expect_certificate(&scratch.write("g.pem", garbage), &["certificate 1", "cannot be read"]);
    let garbage = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    expect_key(&scratch.write("g.key", garbage), &["cannot be used", "RSA", "P-256"]);
    let key = fs::read_to_string(cert("server.key")).unwrap();
    expect_key(&scratch.write("h.key", key.repeat(2)), &["2 keys"]);
}

#[test]
fn a_key_with_a_password() {
    let scratch = Scratch::new("tls");
    let key = copy(&scratch, "protected.key", "server-protected.key");
    expect_key(&key, &["protected by a password", "Identity::password", "openssl pkcs8"]);
    let wrong = Identity::new(cert("server.pem"), &key).password("sesame");
    expect(&refused(Tls::with(wrong.clone())), &key, &["password is wrong"]);
    assert!(!format!("{wrong:?}").contains("sesame"), "a password is in no log");
    let old = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n\
               AAAA\n-----END EC PRIVATE KEY-----\n";
    expect_key(&scratch.write("old.key", old), &["old format", "openssl pkcs8 -topk8"]);
}

#[test]
fn a_key_that_is_not_the_certificates() {
    let scratch = Scratch::new("tls");
    let key = copy(&scratch, "client.key", "client.key");
    expect_key(&key, &["does not belong to", "server.pem", "openssl pkey"]);
    let key = copy(&scratch, "rsa.key", "wildcard-pkcs1.key");
    expect_key(&key, &["does not belong to"]);
}

#[test]
fn a_certificate_that_is_over() {
    let expired = PathBuf::from(cert("expired.pem"));
    expect_certificate(&expired, &["CN=localhost", "expired on 2024-02-01", "days ago", "renew"]);
    // One further up may be there for old clients.
    let scratch = Scratch::new("tls");
    let chain = [fs::read(cert("server.pem")).unwrap(), fs::read(&expired).unwrap()].concat();
    let server = start_with(Tls::new(scratch.write("chain.pem", chain), cert("server.key")));
    let not_after = server.handle.tls_status().expect("TLS").not_after;
    assert!(not_after > SystemTime::now(), "that of the server's own");
    server.finish();
}

#[test]
fn a_key_that_others_may_change() {
    let scratch = Scratch::new("tls");
    let key = copy(&scratch, "open.key", "server.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o666)).unwrap();
    expect_key(&key, &["may change", "0666", "chmod 600"]);
    // As in a secret of Kubernetes.
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let server = Server::builder().tls(Tls::new(cert("server.pem"), &key)).bind_tls("127.0.0.1:0");
    within(server.start().unwrap().stop());
}

#[test]
fn a_key_that_this_user_may_not_read() {
    if !rustix::process::geteuid().is_root() {
        let scratch = Scratch::new("tls");
        let key = copy(&scratch, "secret.key", "server.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o000)).unwrap();
        expect_key(&key, &["permission denied", "mode 0000", "user"]);
    }
}

#[test]
fn authorities_that_cannot_be_used() {
    let scratch = Scratch::new("tls");
    let tls = || Tls::new(cert("server.pem"), cert("server.key"));
    let required = |path: &Path| tls().clients(ClientCertificates::Required(path.into()));
    let missing = scratch.path("ca.pem");
    expect(&refused(required(&missing)), &missing, &["no such file"]);
    let key = copy(&scratch, "ca.key", "server.key");
    expect(&refused(required(&key)), &key, &["no certificate"]);
}

#[test]
fn settings_that_cannot_be() {
    let says = |error: Error, words: &str| {
        let said = error.to_string();
        assert!(matches!(error, Error::Config(_)) && said.contains(words), "{said}");
    };
    let identity = || Identity::new(cert("server.pem"), cert("server.key"));
    for name in ["", "*", "*.", "a b", "*.*.example", "https://example.com", "exa_mple.com/x"] {
        says(refused(Tls::with(identity()).host(name, identity())), "is no host name");
    }
    let twice = Tls::with(identity()).host("a.example", identity()).host("A.example", identity());
    says(refused(twice), "twice");
    says(refused(Tls::with(identity()).watch(Some(Duration::ZERO))), "tls.watch");
    let error = Server::builder().bind_tls("127.0.0.1:0").start().err().unwrap();
    says(error, "Builder::tls");
    let plain = Server::builder().bind("127.0.0.1:0").start().unwrap();
    says(plain.reload_tls().unwrap_err(), "no TLS");
    assert!(plain.tls_status().is_none());
    within(plain.stop());
}

/// What a new client is shown.
fn shown(server: &TestServer) -> Vec<u8> {
    // Both certificates are for a name that both have.
    let mut config = client_config();
    config.resumption = rustls::client::Resumption::disabled();
    config.dangerous().set_certificate_verifier(std::sync::Arc::new(Anything));
    Secure::connect(server.addr(), config, "localhost").unwrap().server_certificate()
}

fn start_with(tls: Tls) -> TestServer {
    let _ = env_logger::builder().is_test(true).try_init();
    let server = Server::builder()
        .tls(tls)
        .bind_tls("127.0.0.1:0")
        .workers(2)
        .on_message(async |session, message| session.send(message).await);
    TestServer { handle: server.start().unwrap() }
}

#[test]
fn a_reload_changes_new_handshakes_and_no_session() {
    let scratch = Scratch::new("tls");
    let (chain, key) =
        (copy(&scratch, "chain.pem", "server.pem"), copy(&scratch, "key", "server.key"));
    let server = start_with(Tls::new(&chain, &key).watch(None));
    let mut open = Secure::open(server.addr());
    let before = server.handle.tls_status().unwrap();
    assert!(before.not_after > SystemTime::now() && before.last_error.is_none());

    // Half of a new pair: refused, and the old one stays.
    copy(&scratch, "chain.pem", "wildcard.pem");
    let error = server.handle.reload_tls().unwrap_err();
    expect(&error, &key, &["does not belong"]);
    let status = server.handle.tls_status().unwrap();
    assert_eq!(status.last_error, Some(error.to_string()));
    assert_eq!(status.loaded_at, before.loaded_at);
    assert_eq!(shown(&server), der("server.pem"));
    open.echo("still the first");

    // The other half.
    copy(&scratch, "key", "wildcard-pkcs1.key");
    server.handle.reload_tls().unwrap();
    assert_eq!(shown(&server), der("wildcard.pem"));
    assert!(server.handle.tls_status().unwrap().last_error.is_none());
    open.echo("still the first");

    // The files are gone: the last good pair stays.
    fs::remove_file(&chain).unwrap();
    expect(&server.handle.reload_tls().unwrap_err(), &chain, &["no such file"]);
    assert_eq!(shown(&server), der("wildcard.pem"));
    open.goodbye();
    server.finish();
}

#[test]
fn files_that_change_are_read_again() {
    let scratch = Scratch::new("tls");
    let (chain, key) =
        (copy(&scratch, "chain.pem", "server.pem"), copy(&scratch, "key", "server.key"));
    let server = start_with(Tls::new(&chain, &key).watch(Some(Duration::from_millis(20))));
    assert_eq!(shown(&server), der("server.pem"));
    // One after the other, as most tools do it; between them they do not fit.
    copy(&scratch, "chain.pem", "wildcard.pem");
    eventually("the mismatch is noticed", || {
        server.handle.tls_status().unwrap().last_error.is_some()
    });
    assert_eq!(shown(&server), der("server.pem"));
    copy(&scratch, "key", "wildcard-pkcs1.key");
    eventually("the new pair is used", || shown(&server) == der("wildcard.pem"));
    server.finish();
}

/// Kubernetes mounts a secret as links to links: `tls.crt -> ..data/tls.crt`, `..data -> ..2026_1`; to
/// change it, the link in the middle is replaced. No file that is configured has changed then, by name.
#[test]
fn a_directory_that_is_replaced_behind_a_link_is_noticed() {
    let scratch = Scratch::new("tls");
    for (directory, chain, key) in
        [("..1", "server.pem", "server.key"), ("..2", "wildcard.pem", "wildcard-pkcs1.key")]
    {
        fs::create_dir(scratch.path(directory)).unwrap();
        copy(&scratch, &format!("{directory}/tls.crt"), chain);
        copy(&scratch, &format!("{directory}/tls.key"), key);
    }
    symlink("..1", scratch.path("..data")).unwrap();
    symlink("..data/tls.crt", scratch.path("tls.crt")).unwrap();
    symlink("..data/tls.key", scratch.path("tls.key")).unwrap();
    let tls = Tls::new(scratch.path("tls.crt"), scratch.path("tls.key"));
    let server = start_with(tls.watch(Some(Duration::from_millis(20))));
    assert_eq!(shown(&server), der("server.pem"));
    symlink("..2", scratch.path("..data_tmp")).unwrap();
    fs::rename(scratch.path("..data_tmp"), scratch.path("..data")).unwrap();
    eventually("the new pair is used", || shown(&server) == der("wildcard.pem"));
    assert!(server.handle.tls_status().unwrap().last_error.is_none(), "both changed at once");
    server.finish();
}

#[test]
fn the_example_reads_its_certificates_again_at_sighup() {
    use rustix::process::{Pid, Signal, kill_process};
    use std::io::{BufRead, BufReader};

    let scratch = Scratch::new("tls");
    let (chain, key) =
        (copy(&scratch, "chain.pem", "server.pem"), copy(&scratch, "key", "server.key"));
    let test = std::env::current_exe().unwrap();
    let example = test.parent().and_then(Path::parent).unwrap().join("examples/wss");
    assert!(example.exists(), "build the examples first: `cargo build --examples`");
    let mut child = Command::new(example)
        .args(["127.0.0.1:0", "--cert"])
        .arg(&chain)
        .arg("--key")
        .arg(&key)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addr = line.trim_start_matches("listening on wss://").trim_end_matches("/\n");
    let addr = addr.parse().unwrap();
    let shown = || {
        let mut config = client_config();
        config.dangerous().set_certificate_verifier(std::sync::Arc::new(Anything));
        Secure::connect(addr, config, "localhost").unwrap().server_certificate()
    };
    let mut open = Secure::open(addr);
    assert!(String::from_utf8(open.read_frame().payload).unwrap().starts_with("TLS 1.3 with"));
    assert_eq!(shown(), der("server.pem"));
    copy(&scratch, "chain.pem", "wildcard.pem");
    copy(&scratch, "key", "wildcard-pkcs1.key");
    kill_process(Pid::from_child(&child), Signal::HUP).unwrap();
    eventually("the new pair is used", || shown() == der("wildcard.pem"));
    open.echo("still there");
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(open.read_frame().close().0, 1001);
    open.send_frame(CLOSE, &1001_u16.to_be_bytes());
    assert!(child.wait().unwrap().success());
}

use std::future::poll_fn;
use std::io::{Read, Write};
use std::thread;

use futures_lite::{AsyncReadExt, AsyncWriteExt, future};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::*;
use crate::config;
use crate::executor::Clock;
use crate::tls::Store;
use crate::transport::{MemoryStream, pair};

const CERTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/certs");

/// A pipe for a client that blocks.
struct Blocking(MemoryStream);

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        future::block_on(self.0.read(buffer))
    }
}

impl Write for Blocking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        future::block_on(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Client = StreamOwned<ClientConnection, Blocking>;

/// A client on a thread of its own and a server on this one.
fn connect<F: Future<Output = ()> + 'static>(
    client: impl FnOnce(Blocking) + Send + 'static,
    server: impl FnOnce(Tls) -> F + 'static,
) {
    let (inner, stream) = pair();
    let client = thread::spawn(move || client(Blocking(stream)));
    let worker = Worker::new(0, Clock::kernel()).unwrap();
    let settings = config::Tls::new(format!("{CERTS}/server.pem"), format!("{CERTS}/server.key"));
    let (config, _) = Store::new(settings).unwrap().connection();
    let tls = Tls::new(&worker, Transport::Memory(inner), config, Vec::new()).unwrap();
    worker.spawn(server(tls));
    worker.run_to_the_end();
    client.join().unwrap();
}

async fn read(tls: &mut Tls, buffer: &mut Vec<u8>) -> usize {
    poll_fn(|cx| tls.poll_readable(cx)).await;
    poll_fn(|cx| tls.poll_read(cx, buffer)).await.unwrap()
}

async fn shake_hands(tls: &mut Tls) -> io::Result<()> {
    let mut place = None;
    poll_fn(|cx| tls.poll_handshake(cx, &mut place)).await
}

/// The same, both after the handshake.
fn meet<F: Future<Output = ()> + 'static>(
    client: impl FnOnce(Client) + Send + 'static,
    server: impl FnOnce(Tls) -> F + 'static,
) {
    let client = move |stream| {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(format!("{CERTS}/ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(connection, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        client(stream);
    };
    connect(client, |mut tls| async move {
        shake_hands(&mut tls).await.unwrap();
        server(tls).await;
    });
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i % 251) as u8).collect()
}

#[test]
fn a_reader_with_little_room_gets_everything_in_order() {
    const COUNT: usize = 200_000;
    meet(
        |mut client| {
            client.write_all(&bytes(COUNT)).unwrap();
            client.conn.send_close_notify();
            client.flush().unwrap();
        },
        |mut tls| async move {
            let mut received = Vec::new();
            let mut buffer = Vec::with_capacity(100);
            loop {
                buffer.clear();
                match read(&mut tls, &mut buffer).await {
                    0 => break,
                    _ => received.extend_from_slice(&buffer),
                }
            }
            assert!(received == bytes(COUNT));
            assert!(tls.plain.capacity() == 0 && tls.incoming.held() == 0);
        },
    );
}

/// A new key costs as much as many messages, and a turn once took all that were in sixteen reads.
#[test]
fn records_that_say_little_are_read_in_many_turns() {
    const BYTES: usize = 100;
    // All of it fits into the pipe, so that nobody has to be waited for.
    const KEYS: usize = 20;
    let (written, wait) = std::sync::mpsc::channel();
    meet(
        move |mut client| {
            for byte in bytes(BYTES) {
                for _ in 0..KEYS {
                    client.conn.refresh_traffic_keys().unwrap();
                }
                client.write_all(&[byte]).unwrap();
            }
            client.conn.send_close_notify();
            client.flush().unwrap();
            written.send(()).unwrap();
        },
        move |mut tls| async move {
            wait.recv().unwrap();
            let mut received = Vec::new();
            let mut buffer = Vec::with_capacity(64 * 1024);
            let mut turns = Vec::new();
            loop {
                buffer.clear();
                match read(&mut tls, &mut buffer).await {
                    0 => break,
                    _ => received.extend_from_slice(&buffer),
                }
                turns.push(tls.worker.turn());
            }
            assert!(received == bytes(BYTES));
            turns.dedup();
            // Nearly as many as it has had before it is looked at, and as many as it is given at once.
            let most = 2 * RECORDS_PER_TURN;
            assert!(turns.len() >= BYTES * KEYS / most, "{} turns", turns.len());
        },
    );
}

#[test]
fn whoever_is_dropped_after_the_handshake_has_said_its_end() {
    meet(
        |mut client| {
            client.read_to_end(&mut Vec::new()).expect("a close_notify");
            assert_eq!(client.conn.tls13_tickets_received(), 2);
        },
        |tls| async move { drop(tls) },
    );
}

/// A refused client that went on sending had its buffer kept for it, and could lose the alert.
#[test]
fn after_a_failure_what_comes_is_thrown_away_up_to_the_end() {
    const GARBAGE: &[u8] = &[22, 3, 1, 0, 4, 255, 255, 255, 255];
    connect(
        |mut stream| {
            stream.write_all(GARBAGE).unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).unwrap();
            let alert = AlertDescription::DecodeError.into();
            assert_eq!(said, [ALERT_RECORD, 3, 3, 0, 2, FATAL, alert]);
            stream.write_all(&bytes(100)).unwrap();
        },
        |mut tls| async move {
            let error = shake_hands(&mut tls).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(tls.has_failed());
            assert_eq!(tls.incoming.bytes.capacity(), 0);
            let mut buffer = Vec::with_capacity(1000);
            let mut discarded = 0;
            loop {
                let count = read(&mut tls, &mut buffer).await;
                assert!(buffer.is_empty(), "it is not plaintext");
                if count == 0 {
                    break;
                }
                discarded += count;
            }
            assert_eq!(discarded, 100);
        },
    );
}

/// A client on a slow line was given up in the middle of a record.
#[test]
fn half_a_record_is_a_sign_of_life() {
    let (heard, go_on) = std::sync::mpsc::channel();
    meet(
        move |mut client| {
            client.conn.writer().write_all(&bytes(1000)).unwrap();
            let mut wire = Vec::new();
            client.conn.write_tls(&mut wire).unwrap();
            let (half, rest) = wire.split_at(500);
            client.sock.write_all(half).unwrap();
            go_on.recv().unwrap();
            client.sock.write_all(rest).unwrap();
        },
        move |mut tls| async move {
            let mut buffer = Vec::with_capacity(2000);
            poll_fn(|cx| {
                assert!(tls.poll_read(cx, &mut buffer).is_pending());
                if tls.take_heard() { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            assert!(!tls.take_heard(), "it has been asked");
            heard.send(()).unwrap();
            poll_fn(|cx| tls.poll_read(cx, &mut buffer)).await.unwrap();
            assert!(buffer == bytes(1000));
        },
    );
}

#[test]
fn records_are_counted_by_their_headers() {
    let fed = |bytes: &[u8], most| {
        let mut incoming = Incoming::new(bytes.to_vec());
        (incoming.feed(most), incoming.given().len())
    };
    assert_eq!(fed(&[], 9), (0, 0));
    assert_eq!(fed(&[23, 3, 3, 0], 9), (0, 4));
    assert_eq!(fed(&[23, 3, 3, 0, 0], 9), (1, 5));
    assert_eq!(fed(&[23, 3, 3, 255, 255, 7, 7], 9), (1, 7));
    let three = [23, 3, 3, 0, 2, 7, 7, 23, 3, 3, 0, 1, 7, 23, 3];
    assert_eq!(fed(&three, 9), (2, 15));
    assert_eq!(fed(&three, 2), (2, 15));
    assert_eq!(fed(&three, 1), (1, 7));
    // However they come, and whatever becomes of those that have been given.
    let mut incoming = Incoming::default();
    let mut records = 0;
    for byte in three {
        incoming.bytes.push(byte);
        records += incoming.feed(1);
        assert!(!incoming.is_unfed());
        incoming.given().fill(0);
    }
    assert_eq!(records, 2);
    incoming.start = 13;
    incoming.compact();
    incoming.bytes.extend([3, 0, 1, 7]);
    assert_eq!((incoming.feed(1), incoming.held()), (1, 6));
}

#[test]
fn what_is_reported_as_written_has_left_and_what_is_kept_is_bounded() {
    const COUNT: usize = 1 << 20;
    let (looked, look) = std::sync::mpsc::channel();
    meet(
        move |mut client| {
            // Reads nothing before the server has filled the pipe.
            look.recv().unwrap();
            let mut received = Vec::new();
            client.read_to_end(&mut received).expect("a close_notify before the end");
            assert!(received == bytes(COUNT));
        },
        move |mut tls| async move {
            let all = bytes(COUNT);
            let mut written = 0;
            let mut full = false;
            while written < COUNT {
                let polled = poll_fn(|cx| {
                    // Two slices, cut anywhere.
                    let (head, rest) = all[written..].split_at(5.min(COUNT - written));
                    Poll::Ready(tls.poll_write(cx, &[IoSlice::new(head), IoSlice::new(rest)]))
                })
                .await;
                match polled {
                    Poll::Ready(count) => written += count.unwrap(),
                    Poll::Pending if !full => {
                        full = true;
                        // The pipe holds 64 KiB, and not all of that is plaintext.
                        assert!((1..64 * 1024).contains(&written), "{written}");
                        let kept = tls.outgoing.len() - tls.unsent;
                        assert!(kept > 0 && kept <= WRITE_BYTES + 4 * RECORD_OVERHEAD);
                        assert!(tls.accepted - tls.reported > 0);
                        looked.send(()).unwrap();
                    }
                    Poll::Pending => future::yield_now().await,
                }
            }
            assert_eq!((tls.outgoing.capacity(), tls.accepted), (0, 0));
        },
    );
}

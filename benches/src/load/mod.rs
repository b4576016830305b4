//! The load generator: one thread, its own masked frames, edge-triggered epoll.

pub(crate) mod accept;
pub(crate) mod broadcast;
pub(crate) mod echo;
pub(crate) mod idle;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use coracle_benches::poller::{Patience, Poller, STALL, reset_on_close};
use coracle_benches::tls::{self, Connector};
use coracle_benches::{frame, upgrade};
use rustls::{ClientConnection, HandshakeKind};

use crate::Result;
use crate::plan::Sample;

/// A load that is put on in slices.
///
/// Between them the server rests, so that several can take turns, and its CPU time is read only at
/// both ends. Whatever else the machine does then meets all of them alike.
pub(crate) trait Sliced {
    /// Loads the server for one slice, until everything is answered.
    fn slice(&mut self) -> Result<()>;

    /// What came of all slices.
    fn finish(self: Box<Self>) -> Result<Sample>;
}

/// A connection after its upgrade.
///
/// Pings are not answered: every row is over before a server with sensible timeouts sends one.
struct Client {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl Client {
    /// Connects and upgrades, blocking; over TLS if there is a connector for it.
    fn open(server: SocketAddr, tls: Option<&Connector>) -> Result<Self> {
        Self::open_with(server, tls, &upgrade::request(&server.to_string()))
    }

    fn open_with(server: SocketAddr, tls: Option<&Connector>, request: &[u8]) -> Result<Self> {
        let socket = TcpStream::connect(server)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(STALL))?;
        socket.set_write_timeout(Some(STALL))?;
        let tls = tls.map(Connector::connection).transpose()?.map(Box::new);
        let mut client = Self { socket, tls };
        client.write_all(request)?;
        let mut head = Vec::with_capacity(256);
        while upgrade::head_len(&head).is_none() {
            let mut some = [0; 256];
            match client.read(&mut some)? {
                0 => return Err("the server closed before it had upgraded".into()),
                read => head.extend_from_slice(&some[..read]),
            }
        }
        // The server has nothing to say before we do.
        if upgrade::head_len(&head) != Some(head.len()) || !upgrade::is_accepted(&head) {
            let head = String::from_utf8_lossy(&head);
            return Err(format!("not the upgrade we asked for: {head:?}").into());
        }
        match client.tls.as_ref().and_then(|it| tls::unexpected(it, Some(HandshakeKind::Full))) {
            Some(difference) => Err(difference.into()),
            None => Ok(client),
        }
    }

    /// One message there and back, blocking, compared byte by byte.
    fn exchange(&mut self, opcode: u8, payload: &[u8]) -> Result<()> {
        let mut message = Vec::new();
        frame::push_client_frame(&mut message, opcode, payload);
        let mut expected = Vec::new();
        frame::push_server_frame(&mut expected, opcode, payload);
        self.write_all(&message)?;
        let mut echo = vec![0; expected.len()];
        self.read_exact(&mut echo).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock => "the server did not echo the first message".into(),
            _ => format!("reading the first echo: {error}"),
        })?;
        if let Some(at) = (0..echo.len()).find(|&at| echo[at] != expected[at]) {
            return Err(format!("the first echo is wrong from byte {at} on").into());
        }
        Ok(())
    }

    /// A compressed message there and back, blocking. What comes back is not read, only that it is
    /// compressed, and smaller.
    fn exchange_compressed(&mut self, payload: &[u8; 1024]) -> Result<()> {
        let mut message = Vec::new();
        frame::push_stored_frame(&mut message, frame::BINARY, payload);
        self.write_all(&message)?;
        let mut header = [0; 2];
        self.read_exact(&mut header)?;
        if header[0] != 0x80 | frame::COMPRESSED | frame::BINARY || header[1] >= 126 {
            return Err(format!("not a small compressed message: {header:02x?}").into());
        }
        let mut echo = vec![0; header[1].into()];
        Ok(self.read_exact(&mut echo)?)
    }
}

/// Blocking, until the socket is made non-blocking.
impl Read for Client {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.read(buffer),
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.socket).read(buffer),
        }
    }
}

/// Likewise.
impl Write for Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.write(bytes),
            Some(tls) => rustls::Stream::new(&mut **tls, &mut self.socket).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sends what rustls has ready, as far as the socket takes it.
fn send_tls(tls: &mut ClientConnection, mut socket: &TcpStream) -> Result<()> {
    while tls.wants_write() {
        match tls.write_tls(&mut socket) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(format!("sending: {error}").into()),
        }
    }
    Ok(())
}

/// Reads once what the socket has, and decrypts it; the number of bytes read is 0 at the end of the
/// stream, and there is none if nothing has come.
fn receive_tls(tls: &mut ClientConnection, mut socket: &TcpStream) -> Result<Option<usize>> {
    match tls.read_tls(&mut socket) {
        Ok(received) => {
            tls.process_new_packets()?;
            Ok(Some(received))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(format!("receiving: {error}").into()),
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        reset_on_close(&self.socket);
    }
}

/// Bytes to echo: letters, so that they may also be text.
fn payload(len: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(len).collect()
}

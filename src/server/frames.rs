//! Listeners for clients that speak no WebSocket: length-prefixed frames, from the first byte on.

use std::fmt;
use std::net::{TcpListener, ToSocketAddrs};

use super::builder::Builder;
use super::crew::Speaks;
use super::listen::{Source, UnixSocket};

impl<H> Builder<H> {
    /// Listens on this address, like [`bind`](Self::bind), for clients that speak no WebSocket but
    /// length-prefixed [frames](crate::docs::frames): the number of bytes of a message, as a big-endian
    /// `u32`, then the bytes.
    ///
    /// There is no request, so **[`Handler::accept`](crate::Handler::accept) is not asked**, nor is the
    /// origin looked at: whoever can connect has a session. Whom that session belongs to is for the
    /// application to find out by its first message, or to leave to the network.
    pub fn bind_frames(self, address: impl ToSocketAddrs + fmt::Debug) -> Self {
        self.listen_on(address, Speaks::Frames)
    }

    /// Listens on this address, like [`bind_frames`](Self::bind_frames), for clients that speak TLS. What it
    /// needs is said with [`tls`](Self::tls).
    #[cfg(feature = "tls")]
    pub fn bind_frames_tls(self, address: impl ToSocketAddrs + fmt::Debug) -> Self {
        self.listen_on(address, Speaks::FramesTls)
    }

    /// Serves a TCP socket that already listens, for clients as of [`bind_frames`](Self::bind_frames). Its
    /// options are left as they are; `TCP_NODELAY` and the keep-alive's should be set on it.
    pub fn frames_listener(self, listener: TcpListener) -> Self {
        self.listen_at(Source::Tcp(listener), Speaks::Frames)
    }

    /// Listens on a socket of the Unix family, like [`bind_unix`](Self::bind_unix), for clients as of
    /// [`bind_frames`](Self::bind_frames). Who may connect is decided by the permissions of its file.
    pub fn bind_frames_unix(self, socket: impl Into<UnixSocket>) -> Self {
        self.listen_at(Source::Path(socket.into()), Speaks::Frames)
    }

    /// Serves the sockets of one name that the service manager has opened, as with
    /// [`listen_fds_named`](Self::listen_fds_named), for clients as of [`bind_frames`](Self::bind_frames).
    pub fn listen_fds_frames(self, name: impl Into<String>) -> Self {
        self.listen_at(Source::Inherited(Some(name.into())), Speaks::Frames)
    }
}

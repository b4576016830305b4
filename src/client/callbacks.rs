//! What the application wants to be told.

use std::future::Future;

use super::ended::{Disconnected, Ended};
use super::handle::Client;
use super::shared::Connected;
use crate::message::Message;
use crate::session::{Set, Unset};

/// The callbacks of a client: made by the `on_` methods of the [`Builder`](super::Builder), or a type of the
/// application's own.
///
/// They are called one after the other, in the order in which it happened, on the thread of the client or wherever its
/// [`Driver`](super::Driver) runs. While one works, the connection lives on: what is queued leaves, pings are sent
/// and answered, the client comes back, and further messages wait: up to [`Builder::inbox`](super::Builder::inbox), and
/// then nothing is read any more, neither a ping of the server nor its end, until a callback has ended. Of connections
/// that ended and brought nothing while eight others already waited to be told of, nothing is told.
pub trait Callbacks: 'static {
    /// Whether messages are for [`message`](Self::message); otherwise they are for
    /// [`Client::recv`](super::Client::recv).
    const MESSAGES: bool = true;

    #[doc(hidden)]
    const ANY: bool = true;

    /// There is a WebSocket, for the first time or again.
    fn connected(&self, client: &Client, connected: &Connected) -> impl Future<Output = ()> {
        let _ = (client, connected);
        async {}
    }

    /// A message has come.
    fn message(&self, client: &Client, message: Message) -> impl Future<Output = ()> {
        let _ = (client, message);
        async {}
    }

    /// A WebSocket has ended; once for each that was told of.
    fn disconnected(&self, client: &Client, ended: &Disconnected) -> impl Future<Output = ()> {
        let _ = (client, ended);
        async {}
    }

    /// The client does not come back, without having been asked to end.
    fn gave_up(&self, client: &Client, ended: &Ended) -> impl Future<Output = ()> {
        let _ = (client, ended);
        async {}
    }
}

/// The callbacks that were given one by one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Each<C = Unset, M = Unset, D = Unset, G = Unset> {
    pub(super) connect: C,
    pub(super) message: M,
    pub(super) disconnect: D,
    pub(super) give_up: G,
}

/// No callback: everything is for [`Client::recv`](super::Client::recv).
pub type NoCallbacks = Each;

macro_rules! slot {
    ($(#[$about:meta])* $name:ident($($arg:ident: $type:ty),*)) => {
        $(#[$about])*
        pub trait $name: 'static {
            #[doc(hidden)]
            const SET: bool;
            #[doc(hidden)]
            fn call(&self, client: &Client, $($arg: $type),*) -> impl Future<Output = ()>;
        }

        impl $name for Unset {
            const SET: bool = false;
            async fn call(&self, _: &Client, $($arg: $type),*) {
                $(let _ = $arg;)*
            }
        }

        impl<F: AsyncFn(&Client, $($type),*) + 'static> $name for Set<F> {
            const SET: bool = true;
            async fn call(&self, client: &Client, $($arg: $type),*) {
                (self.0)(client, $($arg),*).await;
            }
        }
    };
}

slot! {
    /// What [`Builder::on_connect`](super::Builder::on_connect) was given, or nothing.
    OnConnect(connected: &Connected)
}
slot! {
    /// What [`Builder::on_message`](super::Builder::on_message) was given, or nothing.
    OnMessage(message: Message)
}
slot! {
    /// What [`Builder::on_disconnect`](super::Builder::on_disconnect) was given, or nothing.
    OnDisconnect(ended: &Disconnected)
}
slot! {
    /// What [`Builder::on_give_up`](super::Builder::on_give_up) was given, or nothing.
    OnGiveUp(ended: &Ended)
}

impl<C: OnConnect, M: OnMessage, D: OnDisconnect, G: OnGiveUp> Callbacks for Each<C, M, D, G> {
    const MESSAGES: bool = M::SET;
    const ANY: bool = C::SET || M::SET || D::SET || G::SET;

    async fn connected(&self, client: &Client, connected: &Connected) {
        self.connect.call(client, connected).await;
    }

    async fn message(&self, client: &Client, message: Message) {
        self.message.call(client, message).await;
    }

    async fn disconnected(&self, client: &Client, ended: &Disconnected) {
        self.disconnect.call(client, ended).await;
    }

    async fn gave_up(&self, client: &Client, ended: &Ended) {
        self.give_up.call(client, ended).await;
    }
}

//! Calls the callbacks, one after the other.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};

use futures_lite::FutureExt;

use super::callbacks::Callbacks;
use super::ended::Ended;
use super::handle::{Client, Handle};
use super::shared::{Goodbye, Happened, Shared};
use crate::message::CloseCode;

/// Until nothing more happens, or nobody is left who could be told about.
pub(super) async fn dispatch<H: Callbacks>(shared: &Shared, handle: &Weak<Handle>, callbacks: &H) {
    let Some(happened) = &shared.happened else {
        return;
    };
    while let Some(what) = happened.take().await {
        let Some(client) = handle.upgrade().map(Client) else {
            // Nobody holds the client: what comes is read no further.
            happened.end();
            return;
        };
        let told = async {
            match what {
                Happened::Connected(connected) => callbacks.connected(&client, &connected).await,
                Happened::Message(message) => callbacks.message(&client, message).await,
                Happened::Disconnected(ended) => callbacks.disconnected(&client, &ended).await,
            }
        };
        if !unharmed(shared, told).await {
            happened.end();
            break;
        }
    }
    let Some(client) = handle.upgrade().map(Client) else {
        return;
    };
    let ended: Arc<Ended> = client.ended().await;
    let told = async {
        match &*ended {
            Ended::Requested(last) => {
                if let Some(last) = last {
                    callbacks.disconnected(&client, last).await;
                }
            }
            Ended::Disconnected(last) => {
                callbacks.disconnected(&client, last).await;
                callbacks.gave_up(&client, &ended).await;
            }
            Ended::Failed { .. } => callbacks.gave_up(&client, &ended).await,
            Ended::Panicked => {}
        }
    };
    unharmed(shared, told).await;
}

/// A panic ends the client and nothing else.
async fn unharmed(shared: &Shared, told: impl Future<Output = ()>) -> bool {
    let unharmed = AssertUnwindSafe(told).catch_unwind().await.is_ok();
    if !unharmed {
        log::error!("client: a callback panicked; the connection is closed");
        shared.panicked();
        shared.say(Goodbye::Close(CloseCode::INTERNAL, "a callback panicked".into()));
    }
    unharmed
}

//! Looking back: a page before an id, what followed an id.

use super::errors::StoreError;
use super::ledger::Snapshot;
use super::store::Portion;
use super::value::{Entry, Page, Replay, Since};
use super::{History, MAX_ID};

impl History {
    /// The newest messages of a room whose ids are smaller than `before`, the newest first; without it the newest
    /// of all. At most `limit`, and at most what
    /// [`config::History::page_messages`](crate::config::History::page_messages) and `page_bytes` say.
    ///
    /// What has been published is there at once, kept already or not.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future changes nothing.
    pub async fn list(
        &self,
        room: &str,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let before = before.unwrap_or(MAX_ID + 1);
        let mut bounds = self.book.bounds(limit.max(1));
        let Snapshot { base, recent: mut page, .. } =
            self.book.ledger.older(room, before, &mut bounds);
        if !page.more {
            let before = before.min(base + 1);
            let older = self.book.store.before(room, before, bounds).await?;
            page.append(older);
        }
        let Portion { entries, more } = page;
        Ok(Page { epoch: self.epoch(), entries, more })
    }

    /// The messages of a room that followed what `since` names, the oldest first; at most `limit` and what the
    /// configuration says, as with [`list`](Self::list).
    ///
    /// [`Replay::recovered`] is true if nothing is missing. It is not if the ids of `since` are of another
    /// [`Epoch`](super::Epoch), if what followed has been removed since, if it was not kept, if the process ended
    /// in between in a way in which something may have been lost, or if there never was such an id. Where the
    /// epoch is another one nothing is returned but where to go on.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Safe: dropping the future changes nothing.
    pub async fn replay(
        &self,
        room: &str,
        since: Since,
        limit: usize,
    ) -> Result<Replay, StoreError> {
        let mut bounds = self.book.bounds(limit.max(1));
        // What is needed of it is known when the store has answered, but not more than this.
        let Snapshot { last, base, recent } = self.book.ledger.newer(room, since.after, bounds);
        let epoch = self.epoch();
        if since.epoch != epoch || since.after > last {
            let (entries, recovered) = (Vec::new(), false);
            return Ok(Replay { epoch, entries, recovered, position: last, more: false });
        }
        let mut portion = Portion::default();
        if since.after < base {
            let kept = self.book.store.after(room, since.after, base, bounds).await?;
            portion.append(kept);
            bounds = bounds.less(&portion.entries);
        }
        if !portion.more {
            let Portion { entries, more } = recent;
            portion.append(Portion::collect(entries, &mut bounds));
            portion.more |= more;
        }
        let Portion { entries, more } = portion;
        let position = match entries.last() {
            Some(entry) if more => entry.id,
            _ => last,
        };
        let recovered = is_whole(since.after, &entries, position);
        Ok(Replay { epoch, entries, recovered, position, more })
    }
}

/// Whether these are all that can have been, above an id and up to another.
fn is_whole(after: u64, entries: &[Entry], position: u64) -> bool {
    let follow = entries.iter().zip(after + 1..).all(|(entry, id)| entry.id == id);
    follow && entries.len() as u64 == position - after
}

//! Happy Eyeballs (RFC 8305): a network in which one family of addresses is broken costs a quarter of a second.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use smol::Timer;
use smol::net::TcpStream;

/// Between the beginnings of two attempts, while none has failed or succeeded: RFC 8305 section 8.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Nobody has that many; a name with more may be an attack on those that it points to.
const ADDRESSES: usize = 16;

/// The order of the resolver (RFC 6724), with families that alternate: RFC 8305 section 4.
pub(super) fn interleave(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut order = VecDeque::new();
    loop {
        let pair = [one.next(), other.next()];
        if pair == [None, None] {
            return order;
        }
        for address in pair.into_iter().flatten() {
            if !order.contains(&address) && order.len() < ADDRESSES {
                order.push_back(address);
            }
        }
    }
}

type Attempt = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;

/// The first connection that comes to be; or why none has, in the order in which they failed. The others are
/// closed.
pub(super) async fn connect(
    addresses: Vec<SocketAddr>,
    mut begun: impl FnMut(SocketAddr),
) -> Result<(TcpStream, SocketAddr), Vec<(SocketAddr, io::Error)>> {
    let mut left = interleave(addresses);
    let mut under_way: Vec<(SocketAddr, Attempt)> = Vec::new();
    let mut failed = Vec::new();
    let mut next = Timer::after(Duration::ZERO);
    poll_fn(|cx| {
        loop {
            let mut i = 0;
            let mut again = false;
            while i < under_way.len() {
                match under_way[i].1.as_mut().poll(cx) {
                    Poll::Ready(Ok(tcp)) => return Poll::Ready(Ok((tcp, under_way[i].0))),
                    Poll::Ready(Err(error)) => {
                        failed.push((under_way.remove(i).0, error));
                        // The next one need not wait.
                        again = true;
                    }
                    Poll::Pending => i += 1,
                }
            }
            if left.is_empty() {
                if under_way.is_empty() {
                    return Poll::Ready(Err(std::mem::take(&mut failed)));
                }
                return Poll::Pending;
            }
            if !again && Pin::new(&mut next).poll(cx).is_pending() {
                return Poll::Pending;
            }
            if let Some(address) = left.pop_front() {
                begun(address);
                under_way.push((address, Box::pin(TcpStream::connect(address))));
                next.set_after(ATTEMPT_DELAY);
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|it| it.parse().unwrap()).collect()
    }

    #[test]
    fn families_alternate_beginning_with_the_resolvers_first() {
        let order =
            interleave(addresses(&["[::1]:1", "[::2]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1"]));
        assert_eq!(order, addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
        let order = interleave(addresses(&["1.1.1.1:1", "[::1]:1", "1.1.1.2:1"]));
        assert_eq!(order, addresses(&["1.1.1.1:1", "[::1]:1", "1.1.1.2:1"]));
        let many = (1..=99).map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect();
        assert_eq!(interleave(many).len(), ADDRESSES);
    }

    #[test]
    fn an_address_that_refuses_costs_no_wait_and_all_of_them_are_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let closed = |_| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let [one, two] = [(); 2].map(closed);
        let mut begun = Vec::new();
        let reached = smol::block_on(connect(vec![one, there], |it| begun.push(it)));
        assert_eq!(reached.unwrap().1, there);
        assert_eq!(begun, [one, there]);
        let failed = smol::block_on(connect(vec![one, two], |_| ())).unwrap_err();
        let refused = io::ErrorKind::ConnectionRefused;
        let failed: Vec<_> = failed.into_iter().map(|(it, error)| (it, error.kind())).collect();
        assert_eq!(failed, [(one, refused), (two, refused)]);
    }

    #[test]
    fn an_address_that_does_not_answer_keeps_nobody_from_the_next_one() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        // Whoever connects when the queue is full gets no answer, as behind a firewall that drops packets.
        let full = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&full, 0).unwrap();
        let silent = full.local_addr().unwrap();
        let another =
            || std::net::TcpStream::connect_timeout(&silent, Duration::from_millis(300)).ok();
        let queued: Vec<_> = std::iter::from_fn(another).collect();
        let mut begun = Vec::new();
        let reached = smol::block_on(connect(vec![silent, there], |it| begun.push(it)));
        assert_eq!((reached.unwrap().1, begun), (there, vec![silent, there]));
        drop(queued);
    }
}

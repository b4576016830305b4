//! The thin thread: a message goes in and comes back.

mod support;

use coracle::Server;
use support::*;

#[test]
fn a_message_comes_back_and_the_session_ends_clean() {
    let (closed, records) = heard();
    let server = start(
        Server::builder()
            .on_message(async |session, message| session.send(message).await)
            .on_close(record(&closed)),
    );
    let mut client = server.client();
    client.echo("hello");
    client.send_frame(BINARY, &vec![7; 60_000]);
    assert_eq!(client.read_frame().payload, vec![7; 60_000]);
    client.goodbye();
    let closed = records.next();
    assert!(closed.clean, "{closed}");
    let report = server.finish();
    assert_eq!((report.cut, report.panics), (0, 0));
}

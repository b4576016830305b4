//! Rooms: joining and leaving, publishing, audiences, order, presence, limits.

mod support;

use coracle::{Audience, Message, Server, Session};
use support::*;

/// What a client asks for: `join ROOM`, `leave ROOM`, `say ROOM TEXT`, `others ROOM TEXT`, `all TEXT`. Each
/// is answered with `ok` or with what went wrong, directly, so that whoever has the answer knows it done.
async fn obey(session: &Session, message: Message) -> Result<(), coracle::SendError> {
    let text = message.as_text().unwrap_or_default().to_owned();
    let mut words = text.splitn(3, ' ');
    let (what, room) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let said = words.next().unwrap_or_default();
    let rooms = session.rooms();
    let answer = match what {
        "join" => match session.join(room) {
            Ok(true) => "ok".to_owned(),
            Ok(false) => "again".to_owned(),
            Err(error) => format!("{error:?}"),
        },
        "as" => format!("{:?}", session.join_as(room, said)),
        "leave" => session.leave(room).to_string(),
        "say" => rooms.publish(room, said).await.to_string(),
        "others" => rooms.publish(Audience::Others(room, session.id()), said).await.to_string(),
        "all" => rooms.publish(Audience::All, room).await.to_string(),
        "rooms" => format!("{:?}", session.joined()),
        _ => "?".to_owned(),
    };
    session.send(answer).await
}

fn ask(client: &mut Raw, command: &str) -> String {
    client.send_frame(TEXT, command.as_bytes());
    client.expect_text()
}

#[test]
fn what_is_published_to_a_room_reaches_its_members_and_nobody_else() {
    let server = start(Server::builder().on_message(obey));
    let mut clients: Vec<_> = (0..5).map(|_| server.client()).collect();
    for client in &mut clients[..3] {
        assert_eq!(ask(client, "join harbour"), "ok");
    }
    assert_eq!(ask(&mut clients[3], "join sea"), "ok");
    assert_eq!(ask(&mut clients[4], "say harbour ahoy"), "3");
    for client in &mut clients[..3] {
        assert_eq!(client.expect_text(), "ahoy");
    }
    // Whoever is in another room, or in none, has got nothing before this.
    assert_eq!(ask(&mut clients[3], "rooms"), "[\"sea\"]");
    assert_eq!(ask(&mut clients[4], "rooms"), "[]");
    clients.into_iter().for_each(Raw::goodbye);
    assert_eq!(server.handle.rooms().count(), 0, "empty rooms vanish");
    server.finish();
}

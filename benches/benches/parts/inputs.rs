//! What the parts are given.

/// Of what lies in the second cache, so that no branch is learnt by heart; more than the window of a
/// compressor, so that it has forgotten a message when it sees it again.
const POOL: usize = 256 * 1024;

/// A client's header of a final frame, whose first byte is `first`.
pub(crate) fn client_header(first: u8, payload: usize, mask: [u8; 4]) -> Vec<u8> {
    let mut header = vec![first];
    match payload {
        0..126 => header.push(0x80 | payload as u8),
        126..0x1_0000 => {
            header.push(0x80 | 126);
            header.extend((payload as u16).to_be_bytes());
        }
        _ => {
            header.push(0x80 | 127);
            header.extend((payload as u64).to_be_bytes());
        }
    }
    header.extend(mask);
    header
}

/// The same with its payload.
pub(crate) fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = client_header(first, payload.len(), mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Plain English.
pub(crate) fn ascii(size: usize) -> Vec<u8> {
    text("The quick brown fox jumps over the lazy dog, and says so. ", size)
}

/// Characters of one, two, three and four bytes.
pub(crate) fn mixed(size: usize) -> Vec<u8> {
    text("Grüße, κόσμε; привет, мир! 你好世界 🌍 and some words between. ", size)
}

/// `phrase` again and again; spaces at the end where a character would be cut.
fn text(phrase: &str, size: usize) -> Vec<u8> {
    let mut text = phrase.repeat(size / phrase.len() + 1);
    let end = (0..=size).rev().find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    let mut bytes = text.into_bytes();
    bytes.resize(size, b' ');
    bytes
}

/// Messages of a chat, each different from all others: one JSON object if it is short, an array of
/// them if it is long, cut at `size`.
pub(crate) fn json(size: usize) -> Vec<Vec<u8>> {
    const WORDS: [&str; 24] = [
        "the", "boat", "river", "we", "meet", "at", "noon", "bring", "your", "own", "bread", "and",
        "cheese", "rain", "is", "not", "expected", "before", "evening", "paddle", "left", "small",
        "harbour", "tomorrow",
    ];
    const NAMES: [&str; 6] = ["ada", "grace", "edsger", "barbara", "donald", "radia"];
    let mut random = 1_u64;
    let mut below = |bound: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) as usize % bound
    };
    let mut object = || {
        let (id, name, room) = (below(1 << 30), NAMES[below(NAMES.len())], below(40));
        let words: Vec<_> = (0..6 + below(8)).map(|_| WORDS[below(WORDS.len())]).collect();
        let text = words.join(" ");
        format!(
            r#"{{"type":"message","id":{id},"room":"room-{room}","from":"{name}","text":"{text}"}}"#
        )
    };
    let message = || {
        let mut message = object();
        if message.len() < size {
            message.insert(0, '[');
        }
        while message.len() < size {
            message.push(',');
            message += &object();
        }
        message.truncate(size);
        message.into_bytes()
    };
    std::iter::repeat_with(message).take(POOL / size).collect()
}

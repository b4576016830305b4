//! The parts of the codec, each beside a `memcpy` of as many bytes.
//!
//! ```sh
//! cargo bench --manifest-path benches/Cargo.toml --bench parts
//! ```
//!
//! prints, after criterion's own report, a table in Markdown. The README says what the rows mean.

mod inputs;
mod table;

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, SystemTime};

use coracle::internals::{self, Agreement, Decoder, Deflater, Inflater, Utf8};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};

const KIB: usize = 1024;
const SIZES: [usize; 5] = [16, 125, KIB, 16 * KIB, KIB * KIB];
/// One for each of the three lengths of a header.
const HEADER_SIZES: [usize; 3] = [125, 16 * KIB, KIB * KIB];
/// Compression of a few bytes is of no use, and that of a mebibyte runs as fast as that of its parts.
const COMPRESSED_SIZES: [usize; 3] = [125, KIB, 16 * KIB];
/// More than a piece: what is shorter is one, and that is the row above.
const PIECED_SIZES: [usize; 2] = [16 * KIB, KIB * KIB];

/// A TCP segment on Ethernet, less one: odd, so that characters are cut.
const PIECE: usize = 1447;
/// A read buffer that has seen large messages.
const READ: usize = 64 * KIB;
/// Frames are decoded by so many bytes, if they are smaller: a read buffer of an ordinary session.
const STREAM: usize = 16 * KIB;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

const SHARED: Agreement = Agreement {
    server_takeover: false,
    client_takeover: false,
    server_window_bits: 15,
    client_window_bits: 15,
};
const DEDICATED: Agreement = Agreement { server_takeover: true, client_takeover: true, ..SHARED };

fn main() {
    let begun = SystemTime::now();
    let results = Path::new(env!("CARGO_TARGET_TMPDIR")).join("parts");
    // Short by default, under two minutes in all; `--measurement-time 5` and its like make it longer.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(150))
        .measurement_time(Duration::from_millis(500))
        .sample_size(30)
        .nresamples(2_000)
        // The directory that the table is read from.
        .output_directory(&results)
        .configure_from_args();
    read_header(&mut criterion);
    write_header(&mut criterion);
    unmask_in_place(&mut criterion);
    unmask_into_copy(&mut criterion);
    utf8(&mut criterion);
    utf8_in_pieces(&mut criterion);
    deflate(&mut criterion);
    inflate(&mut criterion);
    decode(&mut criterion);
    criterion.final_summary();
    print!("{}", table::of_run(&results, begun));
}

type Group<'a> = BenchmarkGroup<'a, WallTime>;

fn id(function: &str, size: usize) -> BenchmarkId {
    let size = match size {
        KIB.. if size.is_multiple_of(KIB * KIB) => format!("{} MiB", size / KIB / KIB),
        KIB.. if size.is_multiple_of(KIB) => format!("{} KiB", size / KIB),
        _ => format!("{size} B"),
    };
    BenchmarkId::new(function, size)
}

/// What every row is compared with: `bytes` copied into a buffer that is there already.
fn memcpy(group: &mut Group<'_>, size: usize, bytes: &[u8]) {
    let mut target = vec![0; bytes.len()];
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function(id("memcpy", size), |bencher| {
        bencher.iter(|| black_box(&mut target[..]).copy_from_slice(black_box(bytes)));
    });
}

fn read_header(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read header");
    for size in HEADER_SIZES {
        let header = inputs::client_header(0x82, size, MASK);
        memcpy(&mut group, size, &header);
        group.bench_function(id("coracle", size), |bencher| {
            bencher.iter(|| internals::parse_header(black_box(&header)));
        });
    }
}

fn write_header(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("write header");
    for size in HEADER_SIZES {
        let mut out = Vec::with_capacity(32);
        internals::write_header(size, &mut out);
        memcpy(&mut group, size, &out.clone());
        group.bench_function(id("coracle", size), |bencher| {
            bencher.iter(|| {
                let out = black_box(&mut out);
                out.clear();
                internals::write_header(black_box(size), out);
            });
        });
    }
}

fn unmask_in_place(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unmask in place");
    for size in SIZES {
        // A payload lies behind its header, so it is seldom aligned.
        let mut frame = inputs::frame(0x82, &inputs::ascii(size), MASK);
        let start = frame.len() - size;
        memcpy(&mut group, size, &frame[start..]);
        let payload = &mut frame[start..];
        group.bench_function(id("coracle", size), |bencher| {
            bencher.iter(|| internals::unmask(black_box(payload), black_box(MASK)));
        });
        group.bench_function(id("byte by byte", size), |bencher| {
            bencher.iter(|| by_byte(black_box(payload), black_box(MASK)));
        });
    }
}

/// As the RFC has it, section 5.3.
fn by_byte(payload: &mut [u8], mask: [u8; 4]) {
    for (at, byte) in payload.iter_mut().enumerate() {
        *byte ^= mask[at % 4];
    }
}

fn unmask_into_copy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unmask into a copy");
    for size in SIZES {
        let frame = inputs::frame(0x82, &inputs::ascii(size), MASK);
        let payload = &frame[frame.len() - size..];
        memcpy(&mut group, size, payload);
        group.bench_function(id("a copy, still masked", size), |bencher| {
            bencher.iter(|| black_box(payload).to_vec());
        });
        group.bench_function(id("coracle", size), |bencher| {
            bencher.iter(|| internals::unmasked(black_box(payload), black_box(MASK)));
        });
        group.bench_function(id("copied, then in place", size), |bencher| {
            bencher.iter(|| {
                let mut copy = black_box(payload).to_vec();
                internals::unmask(black_box(&mut copy), black_box(MASK));
                copy
            });
        });
    }
}

fn utf8(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("UTF-8");
    for size in SIZES {
        memcpy(&mut group, size, &inputs::ascii(size));
        for (name, text) in [("ASCII", inputs::ascii(size)), ("mixed", inputs::mixed(size))] {
            group.bench_function(id(&format!("coracle, {name}"), size), |bencher| {
                bencher.iter(|| internals::is_utf8(black_box(&text)));
            });
            group.bench_function(id(&format!("std, {name}"), size), |bencher| {
                bencher.iter(|| std::str::from_utf8(black_box(&text)).is_ok());
            });
        }
    }
}

fn utf8_in_pieces(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("UTF-8 in pieces");
    for size in PIECED_SIZES {
        memcpy(&mut group, size, &inputs::ascii(size));
        for (name, text) in [("ASCII", inputs::ascii(size)), ("mixed", inputs::mixed(size))] {
            group.bench_function(id(&format!("coracle, {name}"), size), |bencher| {
                bencher.iter(|| {
                    let mut utf8 = Utf8::default();
                    assert!(black_box(&text).chunks(PIECE).all(|piece| utf8.push(piece)));
                    utf8.take()
                });
            });
            group.bench_function(id(&format!("collected, then std, {name}"), size), |bencher| {
                bencher.iter(|| {
                    let mut bytes = Vec::new();
                    for piece in black_box(&text).chunks(PIECE) {
                        bytes.extend_from_slice(piece);
                    }
                    String::from_utf8(bytes)
                });
            });
        }
    }
}

/// The names of the rows of both directions, and what was agreed on.
const COMPRESSIONS: [(&str, Agreement, u8); 4] = [
    ("level 1, shared", SHARED, 1),
    ("level 6, shared", SHARED, 6),
    ("level 1, dedicated", DEDICATED, 1),
    ("level 6, dedicated", DEDICATED, 6),
];

fn deflate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("deflate");
    for size in COMPRESSED_SIZES {
        let messages = inputs::json(size);
        memcpy(&mut group, size, &messages[0]);
        for (name, agreement, level) in COMPRESSIONS {
            let mut deflater = Deflater::new(agreement, level);
            let mut next = messages.iter().cycle();
            let mut out = Vec::with_capacity(2 * size);
            group.bench_function(id(name, size), |bencher| {
                bencher.iter(|| {
                    out.clear();
                    let message = next.next().map_or(&[][..], Vec::as_slice);
                    deflater.message(black_box(message), black_box(&mut out))
                });
            });
        }
    }
}

fn inflate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("inflate");
    for size in COMPRESSED_SIZES {
        let messages = inputs::json(size);
        memcpy(&mut group, size, &messages[0]);
        for (name, agreement, level) in COMPRESSIONS {
            let mut deflater = Deflater::new(agreement, level);
            let mut round = || -> Vec<Vec<u8>> {
                let compressed = messages.iter().map(|message| {
                    let mut out = Vec::new();
                    assert!(deflater.message(message, &mut out), "it became no smaller");
                    out
                });
                compressed.collect()
            };
            // With a window of its own the first message of a round refers to the end of the round
            // before. From the second round on they are the same, and can be read in a circle.
            let (first, again) = (round(), round());
            let mut inflater = Inflater::new(agreement);
            assert!(first.iter().all(|wire| inflater.message(wire, size).is_some()));
            let mut next = again.iter().cycle();
            group.bench_function(id(name, size), |bencher| {
                bencher.iter(|| {
                    let wire = next.next().map_or(&[][..], Vec::as_slice);
                    let message = inflater.message(black_box(wire), size);
                    assert!(message.is_some());
                    message
                });
            });
        }
    }
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for size in SIZES {
        // Unmasking in place changes the input, which must be the same the next time. A mask of
        // zeros leaves it as it is, and takes as long as any other.
        let stream = |first: u8, payload: &[u8]| {
            let frame = inputs::frame(first, payload, [0; 4]);
            frame.repeat((STREAM / frame.len()).max(1))
        };
        let streams = [
            ("binary", stream(0x82, &inputs::ascii(size))),
            ("text, ASCII", stream(0x81, &inputs::ascii(size))),
            ("text, mixed", stream(0x81, &inputs::mixed(size))),
        ];
        memcpy(&mut group, size, &streams[0].1);
        for (name, mut stream) in streams {
            let mut decoder = Decoder::new(KIB * KIB, 1, None);
            group.bench_function(id(name, size), |bencher| {
                bencher.iter(|| {
                    for mut read in black_box(&mut stream[..]).chunks_mut(READ) {
                        loop {
                            match decoder.next(&mut read) {
                                Ok(Some(message)) => drop(black_box(message)),
                                Ok(None) => break,
                                Err(violation) => panic!("{violation:?}"),
                            }
                        }
                    }
                });
            });
        }
    }
}

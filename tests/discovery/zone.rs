//! A DNS server that says what a test wants, over UDP and TCP on one port.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Record types.
pub(crate) const A: u16 = 1;
pub(crate) const AAAA: u16 = 28;
pub(crate) const SRV: u16 = 33;

/// How long a listening thread waits before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// What becomes of questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// They are answered.
    Answers,
    /// SERVFAIL.
    Fails,
    /// SERVFAIL to questions for one type.
    FailsFor(u16),
    /// There is no such name.
    NoSuchName,
    /// Over UDP the answer is cut off, as one that is too long; over TCP it is whole.
    Truncates,
    /// Cut off, and over TCP too.
    TruncatesEverything,
    /// Nothing is said.
    Silent,
}

/// Names in lower case with a dot at their ends, and types, with the data of their records.
type Records = HashMap<(String, u16), Vec<Vec<u8>>>;

#[derive(Debug)]
struct Zone {
    mode: Mode,
    ttl: u32,
    records: Records,
    asked: HashSet<(String, u16)>,
}

/// The server. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(ttl: u32) -> Self {
        let (udp, tcp) = sockets();
        let address = udp.local_addr().expect("a bound socket has an address");
        let zone = Zone { mode: Mode::Answers, ttl, records: Records::new(), asked: HashSet::new() };
        let (zone, stop) = (Arc::new(Mutex::new(zone)), Arc::<AtomicBool>::default());
        let serve_udp = {
            let (zone, stop) = (Arc::clone(&zone), Arc::clone(&stop));
            started("dns-udp", move || over_udp(&udp, &zone, &stop))
        };
        let serve_tcp = {
            let (zone, stop) = (Arc::clone(&zone), Arc::clone(&stop));
            started("dns-tcp", move || {
                for stream in tcp.incoming().flatten() {
                    if stop.load(Relaxed) {
                        return;
                    }
                    // It ends with its connection, however that ends.
                    drop(over_tcp(stream, &zone));
                }
            })
        };
        Self { address, zone, stop, threads: vec![serve_udp, serve_tcp] }
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.zone.lock().expect("no thread panics with the zone in hand").mode = mode;
    }

    /// Replaces the addresses of a name.
    pub(crate) fn set_addresses(&self, name: &str, addresses: &[IpAddr]) {
        let mut zone = self.zone.lock().expect("no thread panics with the zone in hand");
        let data = |v6: bool| {
            let of_kind = addresses.iter().filter(move |address| address.is_ipv6() == v6);
            of_kind.map(|address| match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            })
        };
        zone.records.insert((name.to_owned(), A), data(false).collect());
        zone.records.insert((name.to_owned(), AAAA), data(true).collect());
    }

    /// Replaces the services of a name: priority, port and name of each.
    pub(crate) fn set_services(&self, name: &str, services: &[(u16, u16, &str)]) {
        let data = |(priority, port, target): &(u16, u16, &str)| {
            let mut data = [priority.to_be_bytes(), 0u16.to_be_bytes(), port.to_be_bytes()].concat();
            data.extend(written(target));
            data
        };
        let records = services.iter().map(data).collect();
        self.zone
            .lock()
            .expect("no thread panics with the zone in hand")
            .records
            .insert((name.to_owned(), SRV), records);
    }

    /// Whether a name was asked for.
    pub(crate) fn was_asked(&self, name: &str, kind: u16) -> bool {
        let zone = self.zone.lock().expect("no thread panics with the zone in hand");
        zone.asked.contains(&(name.to_owned(), kind))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Wakes the accepting thread, which then ends.
        drop(TcpStream::connect(self.address));
        for thread in self.threads.drain(..) {
            thread.join().ok();
        }
    }
}

fn started(name: &str, serve: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().name(name.to_owned()).spawn(serve).expect("a thread can be started")
}

/// A port that is free for both.
fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port is free");
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("a bound socket has an address")) {
            udp.set_read_timeout(Some(LOOK)).expect("a socket takes a timeout");
            return (udp, tcp);
        }
    }
}

fn over_udp(udp: &UdpSocket, zone: &Mutex<Zone>, stop: &AtomicBool) {
    let mut question = [0; 1500];
    while !stop.load(Relaxed) {
        let Ok((length, peer)) = udp.recv_from(&mut question) else { continue };
        if let Some(answer) =
            zone.lock().expect("no thread panics with the zone in hand").answer(&question[..length], true)
        {
            // Whoever asked may have gone.
            udp.send_to(&answer, peer).ok();
        }
    }
}

fn over_tcp(mut stream: TcpStream, zone: &Mutex<Zone>) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut question)?;
        let Some(answer) = zone.lock().expect("no thread panics with the zone in hand").answer(&question, false) else {
            return Ok(());
        };
        stream.write_all(&(answer.len() as u16).to_be_bytes())?;
        stream.write_all(&answer)?;
    }
}

impl Zone {
    fn answer(&mut self, message: &[u8], udp: bool) -> Option<Vec<u8>> {
        const HEAD: usize = 12;
        let (mut at, mut name) = (HEAD, String::new());
        while *message.get(at)? > 0 {
            let length = usize::from(message[at]);
            name += &String::from_utf8_lossy(message.get(at + 1..at + 1 + length)?).to_ascii_lowercase();
            name.push('.');
            at += 1 + length;
        }
        let kind = u16::from_be_bytes([*message.get(at + 1)?, *message.get(at + 2)?]);
        let question = &message[HEAD..at + 5];
        self.asked.insert((name.clone(), kind));
        let found = self.records.get(&(name, kind)).map_or(&[][..], Vec::as_slice);
        let (code, truncated, records) = match self.mode {
            Mode::Silent => return None,
            Mode::Fails => (2, false, &[][..]),
            Mode::FailsFor(other) if other == kind => (2, false, &[][..]),
            Mode::NoSuchName => (3, false, &[][..]),
            Mode::Truncates if udp => (0, true, &found[..found.len().min(1)]),
            Mode::TruncatesEverything => (0, true, &found[..found.len().min(1)]),
            _ => (0, false, found),
        };
        // An answer, with recursion, to a question that was asked with recursion.
        let flags: u16 = 0x8180 | u16::from(truncated) << 9 | code;
        let mut answer = message[..2].to_vec();
        for word in [flags, 1, records.len() as u16, 0, 0] {
            answer.extend(word.to_be_bytes());
        }
        answer.extend(question);
        for data in records {
            // The question's name; its type; class IN.
            answer.extend([0xc0, HEAD as u8]);
            answer.extend([kind, 1].map(u16::to_be_bytes).concat());
            answer.extend(self.ttl.to_be_bytes());
            answer.extend((data.len() as u16).to_be_bytes());
            answer.extend(data);
        }
        Some(answer)
    }
}

/// A name on the wire.
fn written(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut bytes: Vec<u8> = labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
    bytes.push(0);
    bytes
}

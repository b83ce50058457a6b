//! New inputs out of old ones: the same ones for the same seed and pool.

use snapgate::snapshot::sample::mix;

/// Changes made to one input at most.
const CHANGES_MAX: usize = 8;

/// How often a piece is repeated at most.
const REPEATS_MAX: usize = 64;

/// Bytes that mean something in many formats, or nothing in any.
const BYTES: &[u8] = b"\0\t\n\r \"#%&'(),-.:;=[]\\_{}\x7f\x80\xbf\xc3\xf0\xff";

/// Numbers at the edges of what fits somewhere.
const NUMBERS: [&str; 16] = [
    "0",
    "-0",
    "-1",
    "1",
    "255",
    "65536",
    "4294967296",
    "9007199254740993",
    "9223372036854775808",
    "18446744073709551616",
    "0.1",
    "1e-400",
    "1e308",
    "1e999",
    "NaN",
    "+Inf",
];

/// Where the numbers come from: a generator that is only as good as it has to be.
pub(crate) struct Mutator {
    state: u64,
    words: &'static [&'static str],
    bytes_max: usize,
}

impl Mutator {
    pub(crate) fn new(seed: u64, words: &'static [&'static str], bytes_max: usize) -> Self {
        Self { state: mix(seed), words, bytes_max }
    }

    /// One of the pool, changed in one place or some.
    pub(crate) fn next(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = pool[self.below(pool.len())].clone();
        for _ in 0..=self.below(CHANGES_MAX) {
            self.change(&mut input, pool);
        }
        input.truncate(self.bytes_max);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let (from, to) = self.range(input.len());
        match self.below(12) {
            0 => input.insert(from, BYTES[self.below(BYTES.len())]),
            1 => input.insert(from, self.below(256) as u8),
            2 => drop(input.drain(from..to)),
            3 => input.truncate(from),
            4 => drop(input.drain(..from)),
            5 => {
                let repeats = 1 + self.below(REPEATS_MAX);
                let room = self.bytes_max.saturating_sub(input.len()) / (to - from).max(1);
                let piece = input[from..to].repeat(repeats.min(room));
                input.splice(to..to, piece);
            }
            6 => {
                let word = NUMBERS[self.below(NUMBERS.len())];
                let start = input[..from].iter().rposition(|byte| !is_digit(*byte)).map_or(0, |place| place + 1);
                let length = input[from..].iter().position(|byte| !is_digit(*byte)).unwrap_or(input.len() - from);
                input.splice(start..from + length, word.bytes());
            }
            7 => {
                let other = &pool[self.below(pool.len())];
                let (start, end) = self.range(other.len());
                input.splice(from..to, other[start..end].iter().copied());
            }
            8 | 9 if !self.words.is_empty() => {
                let word = self.words[self.below(self.words.len())];
                let end = if self.below(2) == 0 { from } else { to };
                input.splice(from..end, word.bytes());
            }
            _ if input.is_empty() => {}
            _ => {
                let at = from.min(input.len() - 1);
                input[at] ^= 1 << self.below(8);
            }
        }
    }

    /// Where a piece of something so long begins and ends: most pieces are short.
    fn range(&mut self, length: usize) -> (usize, usize) {
        let from = self.below(length + 1);
        let most = [4, 32, 256, length][self.below(4)];
        (from, from + self.below((length - from).min(most) + 1))
    }

    fn below(&mut self, bound: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.state) % bound as u64) as usize
    }
}

const fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b'.' | b'+' | b'-')
}

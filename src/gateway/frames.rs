//! One direction of a WebSocket, looked at in passing: how many messages there were, and whether anybody said goodbye.
//!
//! Only the heads of frames are read (RFC 6455 section 5.2). What they hold is skipped, masked or not, and passes untouched.

/// A head with a length of eight bytes and a mask.
const HEAD_BYTES_MAX: usize = 14;

/// Says that this is the last frame of a message.
const FIN: u8 = 0x80;

/// Closes a WebSocket in order.
const CLOSE: u8 = 8;

/// Where in its frames a direction is.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; HEAD_BYTES_MAX],
    /// Bytes of the head that have come.
    come: usize,
    /// Bytes of the frame that are still to come after its head.
    left: u64,
    messages: u64,
    said_goodbye: bool,
    /// These are no frames: nothing more is read.
    lost: bool,
}

impl Frames {
    /// More bytes pass.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.lost {
            if self.left > 0 {
                let skipped = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            self.head[self.come] = bytes[0];
            self.come += 1;
            bytes = &bytes[1..];
            if self.come >= 2 && self.come == self.head_bytes() {
                self.begin();
            }
        }
    }

    /// Messages of which the last frame has begun.
    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    /// Whether this side has said that it ends, or does not speak in frames, so that nobody can know.
    pub(super) fn may_end(&self) -> bool {
        self.said_goodbye || self.lost
    }

    /// How long the head is; its first two bytes say so.
    fn head_bytes(&self) -> usize {
        let length = match self.head[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
        2 + length + mask
    }

    /// The head is there.
    fn begin(&mut self) {
        let [first, second, ..] = self.head;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        self.left = match second & 0x7f {
            126 => number(&self.head[2..4]),
            127 => number(&self.head[2..10]),
            short => short.into(),
        };
        self.come = 0;
        let (is_last, opcode) = (first & FIN != 0, first & 0x0f);
        match opcode {
            0..=2 => self.messages += u64::from(is_last),
            CLOSE..=10 if is_last && self.left < 126 => self.said_goodbye |= opcode == CLOSE,
            _ => self.lost = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(first: u8, masked: bool, payload: usize) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match payload {
            0..126 => bytes.push(mask | payload as u8),
            126..65_536 => bytes.extend([&[mask | 126][..], &(payload as u16).to_be_bytes()].concat()),
            _ => bytes.extend([&[mask | 127][..], &(payload as u64).to_be_bytes()].concat()),
        }
        bytes.extend(vec![0xff; if masked { 4 } else { 0 } + payload]);
        bytes
    }

    fn seen(bytes: &[u8]) -> (u64, bool) {
        let mut frames = Frames::default();
        frames.pass(bytes);
        (frames.messages(), frames.may_end())
    }

    #[test]
    fn messages_are_counted_and_a_goodbye_is_noticed() {
        let (text, part, rest, ping, close) = (0x81, 0x01, 0x80, 0x89, 0x88);
        assert_eq!(seen(&frame(text, true, 5)), (1, false));
        assert_eq!(seen(&[frame(part, true, 5), frame(ping, true, 0), frame(rest, true, 5)].concat()), (1, false));
        assert_eq!(seen(&[frame(text, false, 70_000), frame(close, false, 2)].concat()), (1, true));
        assert_eq!(seen(&frame(0x83, false, 2)), (0, true), "an opcode that there is not");
        assert_eq!(seen(&frame(close, false, 200)), (0, true), "a goodbye that is too long to be one");
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_come(
            payloads in prop::collection::vec((any::<bool>(), prop_oneof![0..300usize, Just(65_535), Just(65_536)]), 0..5),
            piece in 1..40_000usize,
        ) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|(masked, payload)| frame(0x82, *masked, *payload)).collect();
            let mut frames = Frames::default();
            bytes.chunks(piece).for_each(|piece| frames.pass(piece));
            prop_assert_eq!((frames.messages(), frames.may_end()), (payloads.len() as u64, false));
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            seen(&bytes);
        }
    }
}

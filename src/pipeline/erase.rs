//! Deleting on request, by the one thread that writes: in order with what is in its queue.
//!
//! When the worker takes up a deletion, what is stored is deleted; what is not stored yet, because it waits in the queue or
//! its request has not ended, is kept out of the store from then on, until nothing that is meant is on its way any more.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::sync::oneshot;

use super::UNLISTED_MAX;
use crate::ledger::Ledger;
use crate::snapshot::{Moment, Record};
use crate::store::{Erased, Erasure, ErasureJob, NotErased, Subject, Writer};

/// Deletions that may wait for the one under way.
const WAITING_MAX: usize = 16;

/// Subjects whose records are kept out at one time; a deletion of one more is refused. Each is compared with every record that
/// comes.
pub(super) const BARRED_MAX: usize = 256;

/// A tenant is kept out for so long at least, and a minute more than it can take a request to enter the ledger: only then
/// does the ledger tell whether one is on its way.
pub(super) const BARRED_MIN: Duration = UNLISTED_MAX.saturating_add(Duration::from_secs(60));

/// How often to look whether anything that is to be kept out is still on its way.
pub(super) const BARRED_LOOK: Duration = Duration::from_secs(1);

/// The end for those who ask. It does not keep the worker alive.
#[derive(Clone, Debug)]
pub struct Eraser(Sender<Asked>);

#[derive(Debug)]
struct Asked {
    erasure: Erasure,
    answer: oneshot::Sender<Result<Erased, NotErased>>,
}

impl Eraser {
    /// Asks for a deletion. It is carried out also if nobody waits for the answer, which does not come if the gateway
    /// stops before. `None` if as many wait as may.
    pub fn erase(&self, erasure: Erasure) -> Option<oneshot::Receiver<Result<Erased, NotErased>>> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(Asked { erasure, answer }).ok().map(|()| answered)
    }
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Erasures {
    asked: Receiver<Asked>,
    current: Option<(Asked, ErasureJob)>,
    barred: Vec<Barred>,
    looked: Moment,
}

/// What was issued up to a moment is kept out.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Barred {
    subject: Subject,
    up_to: Moment,
}

impl Barred {
    fn means(&self, record: &Record) -> bool {
        record.issued.issued_at <= self.up_to && self.subject.means(record)
    }
}

pub(super) fn channel() -> (Eraser, Erasures) {
    let (sender, asked) = bounded(WAITING_MAX);
    (Eraser(sender), Erasures { asked, current: None, barred: Vec::new(), looked: Moment(0) })
}

impl Erasures {
    /// Takes out of a batch what is to be kept out of the store and of the exits.
    pub(super) fn sift(&self, batch: &mut Vec<Arc<Record>>) -> Vec<Arc<Record>> {
        if self.barred.is_empty() {
            return Vec::new();
        }
        batch.extract_if(.., |record| self.barred.iter().any(|barred| barred.means(record))).collect()
    }

    /// Whether there is something to do between transactions.
    pub(super) fn is_busy(&self) -> bool {
        self.current.is_some() || !self.asked.is_empty()
    }

    /// Goes on with the deletion under way, or takes up the next. How many records it deleted in all, once it is done.
    pub(super) fn go_on(&mut self, writer: &mut Writer, ledger: &Ledger, now: Moment, budget: Duration) -> Option<u64> {
        let (asked, mut job) = match self.current.take() {
            Some(current) => current,
            None => self.take_up(writer, ledger, now)?,
        };
        let records = match writer.erase(&mut job, budget, now) {
            Ok(Some(records)) => records,
            Ok(None) => {
                self.current = Some((asked, job));
                return None;
            }
            Err(error) => {
                refuse(asked, NotErased::Store(error));
                return None;
            }
        };
        let Asked { erasure: Erasure { subject, by }, answer } = asked;
        let barred = self.barred.iter().find(|barred| barred.subject == subject);
        let on_their_way = barred.map_or(0, |barred| ledger.search(usize::MAX, |record| barred.means(record)).len());
        let erased = Erased { records, on_their_way: on_their_way as u64 };
        tracing::info!(%subject, by, records, on_their_way, "records were deleted on request");
        // Whoever asked may have left: it is done all the same.
        answer.send(Ok(erased)).ok();
        Some(records)
    }

    fn take_up(&mut self, writer: &mut Writer, ledger: &Ledger, now: Moment) -> Option<(Asked, ErasureJob)> {
        let asked = self.asked.try_recv().ok()?;
        let subject = asked.erasure.subject;
        // Nobody knows an ID before its request is in the ledger.
        let to_bar = match subject {
            Subject::Id(id) => ledger.get(id).is_some(),
            Subject::Tenant(_) => true,
        };
        if to_bar && self.barred.len() >= BARRED_MAX && self.barred.iter().all(|barred| barred.subject != subject) {
            refuse(asked, NotErased::TooManyBarred);
            return None;
        }
        match writer.begin_erasure(&asked.erasure, now) {
            Ok(job) => {
                tracing::info!(%subject, by = asked.erasure.by, "records are being deleted on request");
                if to_bar {
                    self.barred.retain(|barred| barred.subject != subject);
                    self.barred.push(Barred { subject, up_to: now });
                }
                Some((asked, job))
            }
            Err(error) => {
                refuse(asked, NotErased::Store(error));
                None
            }
        }
    }

    /// Lifts a bar when nothing that it means is on its way any more.
    pub(super) fn lift(&mut self, ledger: &Ledger, now: Moment) {
        if self.barred.is_empty() || now.since(self.looked) < BARRED_LOOK {
            return;
        }
        self.looked = now;
        let is_tenant = |barred: &Barred| matches!(barred.subject, Subject::Tenant(_));
        let due = |barred: &Barred| is_tenant(barred) && now.since(barred.up_to) >= BARRED_MIN;
        let mut idle: Vec<_> = self.barred.iter().copied().filter(due).collect();
        // Once through the ledger for all of them.
        ledger.any(|record| {
            idle.retain(|barred| !barred.means(record));
            idle.is_empty()
        });
        self.barred.retain(|barred| match barred.subject {
            Subject::Id(id) => ledger.get(id).is_some(),
            Subject::Tenant(_) => !idle.contains(barred),
        });
    }
}

fn refuse(asked: Asked, error: NotErased) {
    let Erasure { subject, by } = asked.erasure;
    let source = std::error::Error::source(&error).map(ToString::to_string);
    tracing::error!(%subject, by, %error, source, "a deletion on request failed: ask for it again");
    // Whoever asked may have left.
    asked.answer.send(Err(error)).ok();
}

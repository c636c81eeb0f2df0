//! Where the log goes beside memory: what outlives the supervisor.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::budget::{Bucket, Rationed};
use super::files::Files;
use super::journald::Journald;
use super::{LogLine, TrafficBuf};

/// How many lines are made of the traffic log each second to be recorded, and how many at once. The rest is counted.
const TRAFFIC_LINES: u64 = 200;
const TRAFFIC_LINES_AT_ONCE: u64 = 4_000;

/// What records a stack's log.
#[derive(Debug)]
pub struct Record {
    files: Option<Files>,
    journald: Option<Journald>,
    /// What went wrong at the start, to be said in the log.
    complaint: Option<String>,
    traffic: Rationed,
}

impl Record {
    /// To files, the journal, both, or nowhere; what went wrong is said in the log.
    #[must_use]
    pub fn new(
        files: Option<Files>,
        journald: Option<Journald>,
        complaint: Option<String>,
    ) -> Self {
        Self {
            files,
            journald,
            complaint,
            traffic: Rationed::by(Bucket::new(
                TRAFFIC_LINES,
                TRAFFIC_LINES_AT_ONCE,
                Instant::now(),
            )),
        }
    }

    /// Whether anything is recorded.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.files.is_some() || self.journald.is_some()
    }

    /// Whether it goes to the journal.
    #[must_use]
    pub fn is_in_the_journal(&self) -> bool {
        self.journald.is_some()
    }

    /// The files, if there are any.
    #[must_use]
    pub fn files(&self) -> Option<&Files> {
        self.files.as_ref()
    }

    /// What went wrong at the start, once.
    pub fn complaint(&mut self) -> Option<String> {
        self.complaint.take()
    }

    /// From now on the stack has so many parts.
    pub fn divide(&mut self, parts: usize) {
        if let Some(files) = &mut self.files {
            files.divide(parts);
        }
    }

    /// Records a line; what goes wrong for the first time is given back, to be said in the log.
    pub fn write(&mut self, line: &LogLine) -> Option<String> {
        let now = Instant::now();
        if let Some(journald) = &mut self.journald {
            journald.write(line, now);
        }
        self.files.as_mut()?.write(line, now)
    }

    /// How many of so many records of the traffic log may be made lines to be recorded; how many were not since that was
    /// last said, if it is to be said now.
    pub fn traffic(&mut self, all: u64) -> (u64, Option<String>) {
        if !self.is_on() {
            return (0, None);
        }
        let (taken, left_out) = self.traffic.take(all, Instant::now());
        let said = left_out.map(|left_out| {
            format!(
                "{left_out} of {} are left out here: more than {TRAFFIC_LINES} a second",
                TrafficBuf::PART
            )
        });
        (taken, said)
    }
}

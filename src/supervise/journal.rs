//! The log of a running stack: what was said is kept, recorded, shown, and handed to whoever follows it.
//!
//! # Theory of operation
//!
//! A line goes three ways: into the ring in memory ([`LogBuf`]), to what outlives this process ([`Record`]), and to those
//! who read the log now, the user of a foreground `up` ([`Tee`]) and clients ([`Follower`]). None of them is waited for: a
//! client that follows and doesn't read is told how many lines it has missed. A client that reads what there is already is
//! handed no more than [`LINES_AT_ONCE`] lines at a time, and the next ones when it has taken those ([`Event::ReadOn`]).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use super::rising::Rising;
use super::{Answer, Client, Event, Supervisor, refused, tell};
use crate::config::RecordTo;
use crate::confine::privileges::Ids;
use crate::control::{Brief, Reply, Request, evidence};
use crate::log::budget::{Bucket, Rationed};
use crate::log::files::Files;
use crate::log::journald::{Journald, SOCKET};
use crate::log::record::Record;
use crate::log::streams::Attached;
use crate::log::{Filter, LogBuf, LogLine, Reader, Stream, TrafficBuf};
use crate::plan::{Plan, RecordPlan};
use crate::traffic;
use crate::traffic::line::Names;

/// What the log may take of memory, in bytes.
const LOG_BYTES: usize = 4 << 20;
/// What the traffic log may take of memory, in bytes.
const TRAFFIC_BYTES: usize = 3 << 19;
/// How many lines are made of the traffic log each second for those who follow it, and how many at once.
const TRAFFIC_LINES: u64 = 2_000;
const TRAFFIC_LINES_AT_ONCE: u64 = 20_000;
/// How many of them may follow the log.
const FOLLOWERS: usize = 32;
/// How many lines of the log a client is given at once.
const LINES_AT_ONCE: usize = 256;
/// Who says that the log can't be recorded.
const RECORD: &str = "log";
/// How long what an app has said may wait for a user who takes nothing, once the stack is to end.
const USER_TAKES_WITHIN: Duration = Duration::from_secs(1);
/// How long those who read the log, and go on reading, may take for the rest of it.
const READERS_TAKE_WITHIN: Duration = Duration::from_secs(10);

/// Where the apps' output goes besides the log.
pub enum Tee {
    /// Each line, when it is complete, from the first one on: to the terminal of a foreground `up`. `false` when nobody hears
    /// any more.
    Live(Box<dyn FnMut(&LogLine) -> bool>),
    /// The same once it is known how the start went.
    Lines(Box<dyn FnMut(&LogLine) -> bool>),
    /// Nobody, who costs nothing: no line is made of what the traffic log has if there is no reader.
    Nobody,
    /// Each byte, as it is, to standard output and standard error of this process, and from its standard input. An app
    /// whose reader has gone away meets a closed pipe, as it would without us.
    Bytes(Arc<Attached>),
}

impl Tee {
    /// Whom an app's streams are joined to.
    pub(super) fn user(&self) -> Option<Arc<Attached>> {
        match self {
            Tee::Bytes(user) => Some(Arc::clone(user)),
            Tee::Live(_) | Tee::Lines(_) | Tee::Nobody => None,
        }
    }

    pub(super) fn line(&mut self, line: &LogLine) {
        if let Tee::Live(write) | Tee::Lines(write) = self
            && !write(line)
        {
            *self = Tee::Nobody;
        }
    }
}

/// What was said: kept, shown and handed to who follows it.
pub(super) struct Journal {
    pub(super) kept: LogBuf,
    /// What outlives this process.
    pub(super) record: Record,
    /// Directories that it may be recorded in while the plan changes.
    pub(super) directories: Directories,
    pub(super) traffic: TrafficBuf,
    pub(super) tee: Tee,
    pub(super) followers: Vec<Follower>,
    /// Who follows it, or is still given what there was.
    pub(super) following: Vec<mpsc::WeakSender<Answer>>,
    /// How many clients are on their way through what there is ([`Event::ReadOn`]).
    pub(super) reading: usize,
    /// How many lines may be made of the traffic log for those.
    pub(super) traffic_lines: Rationed,
}

/// A client that reads the log as it grows.
pub(super) struct Follower {
    pub(super) filter: Filter,
    pub(super) client: Client,
    /// How many lines didn't fit since the last one that did.
    pub(super) missed: u64,
}

/// Whether systemd is the machine's init, by the test of sd_booted(3).
#[must_use]
pub fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Directories of logs, open, by where they are.
pub(super) type Directories = BTreeMap<PathBuf, OwnedFd>;

/// Opens what a stack's log is recorded in, and outlives it; goes on in a directory that was `opened`. Root gives another to
/// `owner`, who writes it from then on.
///
/// # Errors
/// Why what is asked for can't be had; what isn't asked for is done without, which the log says.
pub fn record(
    plan: &Plan,
    opened: Option<&Directories>,
    owner: Option<Ids>,
) -> Result<Record, String> {
    let journal = || Journald::connect(Path::new(SOCKET), plan.stack.as_str(), &plan.run);
    let files = || {
        let (path, size, age, parts) = terms(plan);
        match { opened.and_then(|opened| opened.get(path)) }.map(OwnedFd::try_clone) {
            Some(Ok(dir)) => Files::go_on(dir, path, size, age, parts),
            Some(Err(e)) => Err(format!("copy a descriptor: {e}")),
            None => files(plan, owner),
        }
    };
    match plan.record.to {
        RecordTo::Off => Ok(Record::new(None, None, None)),
        RecordTo::File => Ok(Record::new(Some(files()?), None, None)),
        RecordTo::Journal => Ok(Record::new(None, Some(journal()?), None)),
        RecordTo::Both => Ok(Record::new(Some(files()?), Some(journal()?), None)),
        RecordTo::Auto => Ok(match systemd_runs().then(journal) {
            Some(Ok(journal)) => Record::new(None, Some(journal), None),
            _ => match files() {
                Ok(files) => Record::new(Some(files), None, None),
                Err(e) => Record::new(None, None, Some(format!("is kept in memory only: {e}"))),
            },
        }),
    }
}

/// Whether a log that is to go there goes to the journal, as far as that can be had.
#[must_use]
pub fn in_the_journal(to: RecordTo) -> bool {
    match to {
        RecordTo::Journal | RecordTo::Both => true,
        RecordTo::Auto => systemd_runs(),
        RecordTo::File | RecordTo::Off => false,
    }
}

/// The files alone, if a log that was recorded as `before` is to be in others: who is supervisor may not be able to open them.
///
/// # Errors
/// As [`record`].
pub fn more_files(
    plan: &Plan,
    before: &RecordPlan,
    owner: Option<Ids>,
) -> Result<Option<Files>, String> {
    let wanted = |record: &RecordPlan| match record.to {
        RecordTo::File | RecordTo::Both => true,
        RecordTo::Auto => !systemd_runs(),
        RecordTo::Journal | RecordTo::Off => false,
    };
    let has = wanted(before) && before.dir == plan.record.dir;
    if has || !wanted(&plan.record) {
        return Ok(None);
    }
    match (files(plan, owner), plan.record.to) {
        (Ok(files), _) => Ok(Some(files)),
        (Err(_), RecordTo::Auto) => Ok(None),
        (Err(e), _) => Err(e),
    }
}

fn files(plan: &Plan, owner: Option<Ids>) -> Result<Files, String> {
    let (dir, size, age, parts) = terms(plan);
    Files::open(dir, size, age, parts, owner)
}

/// Where files are, how much they may take, for how long, and of how many parts.
fn terms(plan: &Plan) -> (&Path, u64, Duration, usize) {
    let RecordPlan { dir, size, age, .. } = &plan.record;
    // The traffic is one more.
    let parts = plan.limits().count() + 1;
    (dir, *size, Duration::from_secs(*age), parts)
}

impl Supervisor {
    /// The directory that a log may be in by another plan.
    pub(super) fn log_directory(&mut self, path: PathBuf, fds: Vec<OwnedFd>) -> Reply {
        match fds.into_iter().next() {
            Some(dir) => {
                self.journal.directories.insert(path, dir);
                Reply::Done
            }
            None => refused("no directory came".to_owned(), None),
        }
    }

    /// Records the log as a plan has it from now on, in a directory that was opened before, as it was for the plan that may come
    /// back.
    pub(super) fn record_as(&mut self, plan: &Plan) {
        if plan.record != self.ground.plan.record {
            if let Some(files) = self.journal.record.files()
                && let Ok(dir) = files.directory().try_clone_to_owned()
            {
                let path = files.path().to_owned();
                self.journal.directories.insert(path, dir);
            }
            let complaint = match record(plan, Some(&self.journal.directories), None) {
                Ok(record) => {
                    self.journal.record = record;
                    self.journal.record.complaint()
                }
                Err(e) => Some(format!("goes where it went before: {e}")),
            };
            if let Some(text) = complaint {
                self.journal.write(event_line(RECORD.to_owned(), text));
            }
        }
        self.journal.record.divide(plan.limits().count() + 1);
    }

    /// The plan changes no more: the log stays where it is.
    pub(super) fn close_directories(&mut self) {
        self.journal.directories.clear();
    }
}

impl Journal {
    /// One in which nothing was said yet, but why it can't be recorded, if that is so.
    pub(super) fn begin(record: Record, tee: Tee, plan: &Plan) -> Self {
        let mut journal = Self {
            kept: LogBuf::new(LOG_BYTES),
            record,
            directories: Directories::new(),
            traffic: TrafficBuf::new(TRAFFIC_BYTES, Names::of(plan)),
            tee,
            followers: vec![],
            following: vec![],
            reading: 0,
            traffic_lines: Rationed::by(Bucket::new(
                TRAFFIC_LINES,
                TRAFFIC_LINES_AT_ONCE,
                Instant::now(),
            )),
        };
        if let Some(complaint) = journal.record.complaint() {
            let complaint = event_line(RECORD.to_owned(), complaint);
            journal.kept.push(complaint);
        }
        journal
    }

    /// Takes what apps that have ended still have to say, which is at its end when their user has it all, and sees to it
    /// that who reads the log gets it. In a `hurry`, or as soon as the end is asked for, a user who takes nothing is not
    /// waited for. Gives back who has asked.
    pub(super) async fn hear_out(
        &mut self,
        lines: &mut mpsc::Receiver<LogLine>,
        events: &mut mpsc::UnboundedReceiver<Event>,
        sender: &mpsc::UnboundedSender<Event>,
        mut hurry: bool,
        take: fn(&mut Self, LogLine),
    ) -> Vec<Client> {
        let mut asked = vec![];
        loop {
            tokio::select! {
                biased;
                line = lines.recv() => match line {
                    Some(line) => take(self, line),
                    None => break,
                },
                Some(event) = events.recv() => match event {
                    Event::Signal(_) => hurry = true,
                    Event::Asked(Request::Down | Request::Kill, _, client) => {
                        asked.push(client);
                        hurry = true;
                    }
                    Event::ReadOn(reader, follow, client) => {
                        self.read_on(reader, follow, client, sender);
                    }
                    _ => {}
                },
                () = tokio::time::sleep(USER_TAKES_WITHIN), if hurry => break,
            }
        }
        let _ = tokio::time::timeout(READERS_TAKE_WITHIN, self.hand_out(events, sender)).await;
        asked
    }

    /// Waits until everybody who reads the log has all of it, as long as somebody goes on reading.
    async fn hand_out(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<Event>,
        sender: &mpsc::UnboundedSender<Event>,
    ) {
        while self.reading > 0 {
            match tokio::time::timeout(USER_TAKES_WITHIN, events.recv()).await {
                Ok(Some(Event::ReadOn(reader, follow, client))) => {
                    self.read_on(reader, follow, client, sender);
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        let taken = self.followers.iter().map(|follower| async {
            let (sent, is_sent) = oneshot::channel();
            let nothing = Answer {
                replies: vec![],
                fd: None,
                sent: Some(sent),
            };
            if follower.client.send(nothing).await.is_ok() {
                let _ = is_sent.await;
            }
        });
        let all = futures_util::future::join_all(taken);
        let _ = tokio::time::timeout(USER_TAKES_WITHIN, all).await;
    }

    pub(super) fn write(&mut self, line: LogLine) {
        self.show(&line);
        self.keep(line);
    }

    /// Keeps a line of a stack of which is not known yet how its start goes: those see it who want to see the start.
    pub(super) fn hear(&mut self, line: LogLine) {
        match self.tee {
            Tee::Live(_) => self.write(line),
            Tee::Lines(_) | Tee::Nobody | Tee::Bytes(_) => {
                self.followers
                    .retain_mut(|follower| follower.hand_on(&line));
                self.keep(line);
            }
        }
    }

    /// Answers who asks while the stack starts ([`Rising::answers`]).
    pub(super) fn answer_early(
        &mut self,
        rising: &Rising,
        request: Request,
        fds: &[OwnedFd],
        client: Client,
        events: &mpsc::UnboundedSender<Event>,
    ) {
        let reply = match request {
            Request::Logs { filter, follow } => {
                let mut parts = filter.parts.iter();
                let missing = parts.find(|part| *part != TrafficBuf::PART && !rising.has(part));
                match missing {
                    Some(part) => refused(format!("there is no part `{part}`"), None),
                    None => return self.read(filter, follow, client, events),
                }
            }
            request @ Request::Exec { .. } => rising.exec(request, fds),
            request => match rising.status() {
                Ok(status) if matches!(request, Request::Brief) => {
                    Reply::Brief(Box::new(Brief::of(&status)))
                }
                Ok(status) => Reply::Status(Box::new(status)),
                Err(e) => refused(format!("look at the supervisor: {e}"), None),
            },
        };
        tell(&client, reply);
    }

    /// Begins to hand a client the log.
    pub(super) fn read(
        &mut self,
        filter: Filter,
        follow: bool,
        client: Client,
        events: &mpsc::UnboundedSender<Event>,
    ) {
        self.following
            .retain(|client| client.upgrade().is_some_and(|client| !client.is_closed()));
        if follow && self.following.len() >= FOLLOWERS {
            let why = format!("{FOLLOWERS} clients follow this log already");
            let hint = "end one of them; without -f it can be read by any number";
            return tell(&client, refused(why, Some(hint.to_owned())));
        }
        if follow {
            self.following.push(client.downgrade());
        }
        let reader = Reader::new(filter, &self.kept, &self.traffic, follow);
        self.hand_next(reader, follow, client, events);
    }

    /// Goes on with a client that has taken what it was handed, or has gone.
    pub(super) fn read_on(
        &mut self,
        reader: Reader,
        follow: bool,
        client: Client,
        events: &mpsc::UnboundedSender<Event>,
    ) {
        self.reading = self.reading.saturating_sub(1);
        if !client.is_closed() {
            self.hand_next(reader, follow, client, events);
        }
    }

    /// Hands a client the next lines of the log, and the ones after that when it has taken these: no more than these are
    /// ever on their way.
    fn hand_next(
        &mut self,
        mut reader: Reader,
        follow: bool,
        client: Client,
        events: &mpsc::UnboundedSender<Event>,
    ) {
        let lines = reader.read(&self.kept, &self.traffic, LINES_AT_ONCE);
        if lines.is_empty() {
            if !follow {
                return tell(&client, Reply::Done);
            }
            tell(&client, Reply::UpToDate);
            return self.followers.push(Follower {
                filter: reader.filter().clone(),
                client,
                missed: 0,
            });
        }
        let (sent, is_sent) = oneshot::channel();
        let answer = Answer {
            replies: lines.into_iter().map(Reply::Line).collect(),
            fd: None,
            sent: Some(sent),
        };
        if client.try_send(answer).is_err() {
            return;
        }
        self.reading += 1;
        let events = events.clone();
        tokio::spawn(async move {
            // Dropped with the answer, sent or not.
            let _ = is_sent.await;
            let _ = events.send(Event::ReadOn(reader, follow, client));
        });
    }

    /// Keeps a line, and shows it to nobody.
    pub(super) fn keep(&mut self, line: LogLine) {
        self.record(&line);
        self.kept.push(line);
    }

    /// Hands a line to what outlives this process.
    pub(super) fn record(&mut self, line: &LogLine) {
        if let Some(trouble) = self.record.write(line) {
            let line = event_line(RECORD.to_owned(), trouble);
            self.show(&line);
            self.kept.push(line);
        }
    }

    /// Where the log is on disk, and whether it is in the journal.
    pub(super) fn recorded(&self) -> (Option<PathBuf>, bool) {
        let files = self.record.files().map(|files| files.path().to_owned());
        (files, self.record.is_in_the_journal())
    }

    /// The last lines.
    pub(super) fn last(&self) -> Vec<LogLine> {
        evidence::last_lines(&self.kept)
    }

    /// Shows what came before there was anybody to show it to.
    pub(super) fn show_kept(&mut self) {
        if !matches!(self.tee, Tee::Lines(_)) {
            return;
        }
        let mut reader = Reader::new(Filter::default(), &self.kept, &self.traffic, false);
        loop {
            let lines = reader.read(&self.kept, &self.traffic, LINES_AT_ONCE);
            if lines.is_empty() {
                return;
            }
            for line in lines {
                self.tee.line(&line);
            }
        }
    }

    /// Keeps what the sidecar has said, and makes lines of it if there is somebody to read them.
    pub(super) fn write_traffic(&mut self, records: &[u8]) {
        let followed = self
            .followers
            .iter()
            .any(|follower| TrafficBuf::is_wanted(&follower.filter));
        let is_shown = followed || matches!(self.tee, Tee::Live(_) | Tee::Lines(_));
        if is_shown || self.record.is_on() {
            self.make_lines(records, is_shown);
        }
        self.traffic.push(records);
    }

    /// Makes lines of what the sidecar has said, for those who read them now, if there are any, and to be recorded.
    fn make_lines(&mut self, records: &[u8], is_shown: bool) {
        let all = traffic::wire::records(records).count() as u64;
        let shown = match is_shown {
            true => self.traffic_shown(all),
            false => 0,
        };
        let (recorded, left_out) = self.record.traffic(all);
        if let Some(text) = left_out {
            self.record(&event_line(TrafficBuf::PART.to_owned(), text));
        }
        let most = usize::try_from(shown.max(recorded)).unwrap_or(usize::MAX);
        for (number, record) in (0..).zip(traffic::wire::records(records).take(most)) {
            let line = self.traffic.line(&record);
            if number < shown {
                self.show(&line);
            }
            if number < recorded {
                self.record(&line);
            }
        }
    }

    /// How many of so many records are made lines for those who read them now; says how many were not.
    fn traffic_shown(&mut self, all: u64) -> u64 {
        let (shown, left_out) = self.traffic_lines.take(all, Instant::now());
        if let Some(left_out) = left_out {
            let text = format!(
                "{left_out} are left out here: more than {TRAFFIC_LINES} a second; `lrpns logs --part traffic` has the last ones"
            );
            self.show(&event_line(TrafficBuf::PART.to_owned(), text));
        }
        shown
    }

    /// Shows a line to those who read the log now.
    fn show(&mut self, line: &LogLine) {
        self.tee.line(line);
        self.followers.retain_mut(|follower| follower.hand_on(line));
    }
}

impl Follower {
    /// Hands a line on if it is wanted and there is room for it; `false` when the client has gone.
    fn hand_on(&mut self, line: &LogLine) -> bool {
        if !self.filter.wants(&line.part, line.stream) {
            return true;
        }
        let mut replies = vec![];
        if self.missed > 0 {
            let text = format!(
                "{} lines are left out here: they came faster than they were read",
                self.missed
            );
            replies.push(Reply::Line(event_line(line.part.clone(), text)));
        }
        replies.push(Reply::Line(line.clone()));
        let answer = Answer {
            replies,
            fd: None,
            sent: None,
        };
        match self.client.try_send(answer) {
            Ok(()) => self.missed = 0,
            Err(mpsc::error::TrySendError::Full(_)) => self.missed += 1,
            Err(mpsc::error::TrySendError::Closed(_)) => return false,
        }
        true
    }
}

pub(super) fn event_line(part: String, text: String) -> LogLine {
    LogLine {
        time: Timestamp::now(),
        part,
        stream: Stream::Event,
        text,
        continues: false,
        traffic: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_that_does_not_read_is_told_how_much_it_has_missed() {
        let (client, mut answers) = mpsc::channel(2);
        let mut follower = Follower {
            filter: Filter::default(),
            client,
            missed: 0,
        };
        let read = |answers: &mut mpsc::Receiver<Answer>| -> Vec<String> {
            let mut texts = vec![];
            while let Ok(answer) = answers.try_recv() {
                texts.extend(answer.replies.into_iter().map(|reply| match reply {
                    Reply::Line(line) => line.text,
                    other => panic!("{other:?} is no line"),
                }));
            }
            texts
        };
        for text in ["1", "2", "3", "4"] {
            assert!(follower.hand_on(&event_line("app".to_owned(), text.to_owned())));
        }
        assert_eq!(read(&mut answers), ["1", "2"]);
        assert!(follower.hand_on(&event_line("app".to_owned(), "5".to_owned())));
        let after = read(&mut answers);
        assert!(after[0].starts_with("2 lines are left out"), "{after:?}");
        assert_eq!(after[1..], ["5"]);
        drop(answers);
        assert!(!follower.hand_on(&event_line("app".to_owned(), "6".to_owned())));
    }
}

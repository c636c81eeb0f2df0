//! A part's process, from its start to its end, owned by a task of its own.
//!
//! # Theory of operation
//!
//! The task ([`watch`]) hears what the part says and tells it what it is to do ([`Order`]); the loop has a [`Process`], by
//! which it gives orders, and whose drop kills. Who waits for the end of a process has it as [`Awaited`]. An app that is to
//! end gets its signal and its time, then what its command has left running gets the same ([`tend`]).
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::Event;
use crate::config::Stop;
use crate::part::container::{Container, ContainerError, Event as ContainerEvent};
use crate::protocol::ToStage;
use crate::relay;
use crate::stack::PartId;

/// How long a part may take to make room for what it is told. One that was stopped never does.
const HEARS_WITHIN: Duration = Duration::from_secs(5);
/// How long it may take until a command that was sent SIGKILL is heard to have ended.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// What of an app there is still to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Its command.
    Command,
    /// What its command has left running.
    Rest,
}

/// What can be asked of the task that owns a part's process.
pub(super) enum Order {
    /// App: end, in this time.
    Stop(Stop),
    /// Relay: accept nothing more, end with the last connection. By the end of this it is known that all who were accepted
    /// are with their app, or were refused there.
    LastOrders(Option<oneshot::Sender<()>>),
    /// Relay: listening sockets that were shut down listen again.
    ListenAgain,
    /// Start something in an app: what, and its descriptors.
    Start(ToStage, Vec<OwnedFd>),
}

pub(super) struct Process {
    pub(super) orders: mpsc::UnboundedSender<Order>,
    /// Until somebody ends it who waits for that.
    pub(super) life: Option<Life>,
    pub(super) pidfd: OwnedFd,
    pub(super) init: i32,
    pub(super) command: Option<i32>,
}

/// What keeps a process alive: dropped, it kills. Apart from the orders, since a part that doesn't hear can keep those
/// waiting.
pub(super) struct Life {
    pub(super) held: oneshot::Sender<()>,
    pub(super) ended: oneshot::Receiver<bool>,
}

/// The end of a process, in the hands of who waits for it; whoever asks meanwhile still finds the [`Process`].
pub(super) struct Awaited {
    pub(super) orders: mpsc::UnboundedSender<Order>,
    pub(super) life: Option<Life>,
}

impl Process {
    pub(super) fn lives(&self) -> bool {
        !self.orders.is_closed()
    }

    /// Its end, for one who waits for it.
    pub(super) fn awaited(&mut self) -> Awaited {
        Awaited {
            orders: self.orders.clone(),
            life: self.life.take(),
        }
    }

    /// Ends it, an app as `stop` says, and waits until it has.
    pub(super) async fn end(mut self, stop: Option<Stop>) {
        let awaited = self.awaited();
        if let Some(stop) = stop {
            awaited.stop(stop).await;
        }
        awaited.kill().await;
    }
}

impl Awaited {
    /// Asks an app to end, and waits until it has; who owns its process sees to its time.
    pub(super) async fn stop(&self, stop: Stop) {
        let _ = self.orders.send(Order::Stop(stop));
        self.has_ended().await;
    }

    /// Has a relay accept nobody more, and waits until all whom it has accepted are with their app, or were refused there.
    pub(super) async fn hand_over(&self) {
        let (done, is_done) = oneshot::channel();
        let _ = self.orders.send(Order::LastOrders(Some(done)));
        // An error is its end.
        let _ = is_done.await;
    }

    /// Waits until it has ended.
    pub(super) async fn has_ended(&self) {
        self.orders.closed().await;
    }

    /// Ends it at once, and waits until it has; `false` when it lingers ([`Container::kill`]).
    pub(super) async fn kill(self) -> bool {
        match self.life {
            Some(Life { held, ended }) => {
                drop(held);
                ended.await.unwrap_or(true)
            }
            None => true,
        }
    }
}

/// Owns a part's process until its end.
pub(super) async fn watch(
    (id, launch): (PartId, u64),
    mut container: Container,
    orders: mpsc::UnboundedReceiver<Order>,
    life: oneshot::Receiver<()>,
    ended: oneshot::Sender<bool>,
    events: mpsc::UnboundedSender<Event>,
) {
    let tell = |said| {
        let event = match said {
            Tended::Said(what) => Event::Part { id, launch, what },
            Tended::Killed(what) => Event::Killed { id, what },
            Tended::Lingers => Event::Lingers { id },
        };
        drop(events.send(event));
    };
    let last = tokio::select! {
        biased;
        // Nothing is ever sent by it.
        _ = life => None,
        last = tend(&mut container, orders, tell) => Some(last),
    };
    let went = container.kill().await;
    if !went {
        tell(Tended::Lingers);
    }
    if let Some(last) = last {
        tell(Tended::Said(last));
    }
    // Nobody may be waiting for it.
    let _ = ended.send(went);
}

/// What there is to tell of a part's process.
enum Tended {
    Said(Result<ContainerEvent, ContainerError>),
    Killed(Left),
    Lingers,
}

/// An app that is to end.
struct Ending {
    pub(super) stop: Stop,
    /// What of it is to end next…
    pub(super) what: Left,
    /// …and by when.
    pub(super) by: tokio::time::Instant,
    /// The command was killed, and its end is to be heard of.
    pub(super) killed: bool,
}

impl Ending {
    pub(super) fn begin(stop: Stop, what: Left) -> Self {
        Self {
            stop,
            what,
            by: tokio::time::Instant::now() + stop.timeout,
            killed: false,
        }
    }
}

/// Hears what a part says and tells it what it is to do, until its end; that is what it gives back.
///
/// An app that is to end is sent its signal, which goes to its command; when that has ended, what it has left running gets
/// the same signal and as much time. A command that lets its time pass is killed, and the rest is asked all the same: the
/// server may be among it.
async fn tend(
    container: &mut Container,
    mut orders: mpsc::UnboundedReceiver<Order>,
    tell: impl Fn(Tended),
) -> Result<ContainerEvent, ContainerError> {
    let mut ending: Option<Ending> = None;
    let mut left = Left::Command;
    let mut hears = true;
    // Whoever waits for it is told by the end of this.
    let mut handing_over = None;
    loop {
        let by = ending.as_ref().map(|ending| ending.by);
        tokio::select! {
            said = container.next() => match said {
                Ok(ContainerEvent::Gone) | Err(_) => return said,
                Ok(ContainerEvent::Exited(_)) => {
                    left = Left::Rest;
                    if let Some(asked) = &ending {
                        let stop = asked.stop;
                        ending = Some(Ending::begin(stop, left));
                        signal_app(container, stop.signal.number(), &mut hears).await;
                    }
                    tell(Tended::Said(said));
                }
                Ok(ContainerEvent::HandedOver) => drop(handing_over.take()),
                said => tell(Tended::Said(said)),
            },
            // Without anybody to give orders its life is over as well.
            Some(order) = orders.recv() => match order {
                Order::Stop(_) if ending.is_some() => {}
                Order::Stop(stop) => {
                    ending = Some(Ending::begin(stop, left));
                    signal_app(container, stop.signal.number(), &mut hears).await;
                }
                Order::LastOrders(done) => {
                    handing_over = done.filter(|_| !container.has_handed_over());
                    drop(container.say(relay::LAST_ORDERS).await);
                }
                Order::ListenAgain => drop(container.say(relay::LISTEN_AGAIN).await),
                Order::Start(what, fds) => {
                    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                    send(container, &what, &fds, &mut hears).await;
                }
            },
            () = tokio::time::sleep_until(by.unwrap_or_else(tokio::time::Instant::now)), if by.is_some() => {
                let Some(asked) = &mut ending else { continue };
                if asked.killed {
                    // Its pid 1 says nothing of it.
                    return Ok(ContainerEvent::Gone);
                }
                tell(Tended::Killed(asked.what));
                if asked.what == Left::Rest {
                    return Ok(ContainerEvent::Gone);
                }
                asked.killed = true;
                asked.by = tokio::time::Instant::now() + KILLED_WITHIN;
                signal_app(container, libc::SIGKILL, &mut hears).await;
            }
        }
    }
}

/// Sends an app a signal.
async fn signal_app(container: &Container, signal: i32, hears: &mut bool) {
    send(container, &ToStage::Signal(signal), &[], hears).await;
}

/// Sends a part a message, unless it has made no room for an earlier one in time: half of that may have gone, so nothing
/// that follows would be understood.
pub(super) async fn send(
    container: &Container,
    what: &ToStage,
    fds: &[BorrowedFd<'_>],
    hears: &mut bool,
) {
    if *hears {
        let sent = tokio::time::timeout(HEARS_WITHIN, container.send(what, fds)).await;
        // An error is EPIPE: it has ended, and that comes next.
        *hears = sent.is_ok();
    }
}

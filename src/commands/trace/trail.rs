//! Which of the packets that were seen belong together.

use std::net::{IpAddr, SocketAddr};

use super::Question;
use super::judge::{Case, Which};
use super::seen::{Seen, Sight, Site};
use crate::config::clients::Admission;
use crate::firewall::trace::{Content, Headers, Hop};
use crate::plan::{AppPlan, FamilyPlan, PublishPlan};

/// A packet, and where it was seen.
pub(super) type Found<'s> = (&'s Sight, &'s Seen);

/// The packets that belong together.
#[derive(Default)]
pub(super) struct Trail<'s> {
    pub(super) published: Option<usize>,
    /// The client's packet in the host; a second one if it was sent from the host itself and came back.
    pub(super) request: Vec<Found<'s>>,
    /// The relay's on its way out.
    pub(super) dial: Option<Found<'s>>,
    /// What came to the sidecar.
    pub(super) arriving: Option<Found<'s>>,
    /// What the app says to that.
    pub(super) answer: Option<Found<'s>>,
    /// What the host says to the client, and what goes through it to the client.
    pub(super) to_client: Vec<Found<'s>>,
}

impl Case<'_> {
    /// Finds what belongs together.
    pub(super) fn trail<'s>(&self, places: &[&'s Sight]) -> Trail<'s> {
        let at = |site| places.iter().copied().find(|place| place.site == site);
        let mut trail = Trail::default();
        if let Some(host) = at(Site::Host) {
            trail.request = self.requests(host);
            let Some(first) = trail.first() else {
                return trail;
            };
            trail.to_client = answers_to(first, host);
        }
        trail.published = self.meant_by(trail.first());
        let (Some(published), Some(family)) = (trail.published, self.family) else {
            return trail;
        };
        if !trail.is_forwarded() && self.admits(published) {
            trail.dial = self.dial(places, &trail, published, family);
        }
        let Some(sidecar) = at(Site::Sidecar) else {
            return trail;
        };
        if let Some((published, arriving)) = self.arriving(sidecar, &trail, published, family) {
            trail.published = Some(published);
            trail.arriving = Some((sidecar, arriving));
            let answer = self.answer_to(arriving, sidecar, published);
            trail.answer = answer.map(|seen| (sidecar, seen));
        }
        trail
    }

    /// The client's packet in the host, and the same come back, if it was sent from the host itself.
    fn requests<'s>(&self, host: &'s Sight) -> Vec<Found<'s>> {
        let Question { client, port, .. } = *self.question;
        let is_request = |seen: &&Seen| {
            let Headers { source, target, .. } = seen.headers;
            begins(seen) && source.ip() == client && target.port() == port
        };
        let mut requests = host.seen.iter().filter(is_request);
        let Some(first) = requests.next() else {
            return vec![];
        };
        let mut found = vec![(host, first)];
        if first.hops.first() == Some(&Hop::Sent) {
            let comes_back = |seen: &&Seen| {
                seen.hops.first() == Some(&Hop::ComesIn)
                    && (seen.headers.source, seen.headers.target)
                        == (first.headers.source, first.headers.target)
            };
            found.extend(requests.find(comes_back).map(|seen| (host, seen)));
        }
        found
    }

    /// Which published port the client's packet is for, if that was seen; else any.
    fn meant_by(&self, first: Option<&Seen>) -> Option<usize> {
        let to = first.map(|first| first.headers.target.ip());
        let meant = |(_, publish): &(&AppPlan, &PublishPlan)| match to {
            Some(to) => publish.listen.ip() == to || publish.listen.ip().is_unspecified(),
            None => true,
        };
        let exact = self
            .candidates
            .iter()
            .position(|(_, publish)| Some(publish.listen.ip()) == to);
        exact.or_else(|| self.candidates.iter().position(meant))
    }

    /// Whether the app of that port has the client.
    fn admits(&self, published: usize) -> bool {
        let (app, _) = self.candidates[published];
        Admission::of(&app.allow, None).admits(self.question.client)
    }

    /// Where that port is at the sidecar.
    fn entry(&self, published: usize, family: FamilyPlan) -> SocketAddr {
        let (_, publish) = self.candidates[published];
        SocketAddr::new(family.sidecar, publish.entry_port)
    }

    /// Whether the sidecar may be told this address for the client's.
    fn is_clients(&self, address: IpAddr, family: FamilyPlan) -> bool {
        address == self.question.client || address == family.host
    }

    /// What the relay sends to the sidecar: the packet from the client's own port, if there is one.
    fn dial<'s>(
        &self,
        places: &[&'s Sight],
        trail: &Trail<'s>,
        published: usize,
        family: FamilyPlan,
    ) -> Option<Found<'s>> {
        let entry = self.entry(published, family);
        let is_dial = |place: &Sight, seen: &Seen| {
            let sent = seen.hops.first() == Some(&Hop::Sent);
            place.site != Site::Sidecar
                && begins(seen)
                && sent
                && trail.began_before(seen)
                && seen.headers.target == entry
                && self.is_clients(seen.headers.source.ip(), family)
        };
        let dials = || {
            let all = places.iter().copied().flat_map(|place| {
                let seen = place.seen.iter();
                seen.map(move |seen| (place, seen))
            });
            all.filter(|(place, seen)| is_dial(place, seen))
        };
        let tuple = trail.first().map(|first| first.headers.source);
        let same = dials().find(|(_, seen)| Some(seen.headers.source) == tuple);
        same.or_else(|| dials().next())
    }

    /// What came to the sidecar, and for which port: without the host's side it is the entry that tells that.
    fn arriving<'s>(
        &self,
        sidecar: &'s Sight,
        trail: &Trail<'_>,
        published: usize,
        family: FamilyPlan,
    ) -> Option<(usize, &'s Seen)> {
        let arrives = |seen: &&Seen| {
            let source = seen.headers.source;
            begins(seen)
                && trail.began_before(seen)
                && match (trail.dial, trail.first()) {
                    (Some((_, dial)), _) => source == dial.headers.source,
                    (None, Some(first)) => trail.is_forwarded() && source == first.headers.source,
                    (None, None) => self.is_clients(source.ip(), family),
                }
        };
        let entries = match trail.first() {
            Some(_) => published..published + 1,
            None => 0..self.candidates.len(),
        };
        let mut seen = sidecar.seen.iter().filter(arrives);
        seen.find_map(|seen| {
            let mut entries = entries.clone();
            let at = entries.find(|at| seen.headers.target == self.entry(*at, family))?;
            Some((at, seen))
        })
    }

    /// What the app says to what came to the sidecar.
    fn answer_to<'s>(
        &self,
        arriving: &Seen,
        sidecar: &'s Sight,
        published: usize,
    ) -> Option<&'s Seen> {
        let (app, publish) = self.candidates[published];
        let service = app.service(publish);
        let answers = |seen: &&Seen| {
            let Headers { source, target, .. } = seen.headers;
            let same = match (seen.connection, arriving.connection) {
                (Some(one), Some(other)) => one == other,
                _ => {
                    seen.headers.content == Content::Unreachable
                        || target.port() == arriving.headers.source.port()
                }
            };
            let of_app = match seen.headers.content {
                Content::SynAck | Content::Reset => source == service,
                Content::Unreachable => source.ip() == service.ip(),
                _ => false,
            };
            seen.order > arriving.order && of_app && same
        };
        sidecar.seen.iter().find(answers)
    }
}

/// Whether it is the first of a connection, or may be.
fn begins(seen: &Seen) -> bool {
    matches!(seen.headers.content, Content::Syn | Content::Datagram)
}

/// What is said in the host to the client's first packet.
fn answers_to<'s>(first: &Seen, host: &'s Sight) -> Vec<Found<'s>> {
    let is_to_client = |seen: &&Seen| {
        seen.order > first.order
            && seen.headers.target == first.headers.source
            && matches!(seen.headers.content, Content::SynAck | Content::Reset)
    };
    let all = host.seen.iter().filter(is_to_client);
    all.map(|seen| (host, seen)).collect()
}

impl<'s> Trail<'s> {
    /// The client's packet as it came into the host.
    fn first(&self) -> Option<&'s Seen> {
        self.request.first().map(|(_, seen)| *seen)
    }

    /// Whether that was before this one, if it was seen.
    fn began_before(&self, seen: &Seen) -> bool {
        seen.order > self.first().map_or(0, |first| first.order)
    }

    /// Whether the host has sent the client's packet itself on: by DNAT.
    pub(super) fn is_forwarded(&self) -> bool {
        self.request
            .iter()
            .any(|(_, seen)| seen.met(Hop::Forwarded))
    }

    /// Whether it has left the sidecar, or has come to a socket there, which an app was handed.
    pub(super) fn reached_app(&self) -> bool {
        self.arriving.is_some_and(|(_, seen)| {
            let on = seen.met(Hop::Leaves) && seen.met(Hop::Forwarded);
            (on || seen.met(Hop::Delivered)) && seen.drop().is_none()
        })
    }

    pub(super) fn arriving_is(&self) -> Which {
        if self.dial.is_some() || self.request.is_empty() {
            Which::Dial
        } else {
            Which::Request
        }
    }

    /// All, in the order in which things happen.
    pub(super) fn all(&self) -> Vec<(Which, &'s Sight, &'s Seen)> {
        let mut all = vec![];
        let mut add = |which, (place, seen): Found<'s>| all.push((which, place, seen));
        self.request.iter().for_each(|it| add(Which::Request, *it));
        self.dial.iter().for_each(|it| add(Which::Dial, *it));
        let arriving = self.arriving_is();
        self.arriving.iter().for_each(|it| add(arriving, *it));
        self.answer.iter().for_each(|it| add(Which::Answer, *it));
        self.to_client.iter().for_each(|it| add(Which::Answer, *it));
        all
    }
}

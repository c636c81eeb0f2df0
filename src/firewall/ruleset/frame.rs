//! What the table that stacks share has beside their parts: see [`crate::firewall::Shared`].
//!
//! For who has nothing to do with any stack a chain is as short as can be: such a packet is told by the first bytes of its
//! link's name, and looked up by one address. What all our links are called begins with [`LINKS`].

use nftables::stmt::VerdictMap;

use super::*;

/// All links of ours.
const LINKS: &str = "lrp*";

/// The maps of a direction: by the link, by the address, by that of IPv6.
const INPUT: [&str; 3] = ["input_link", "input_source", "input_source6"];
const FORWARD_FROM: [&str; 3] = ["forward_in", "forward_source", "forward_source6"];
const FORWARD_TO: [&str; 3] = ["forward_out", "forward_target", "forward_target6"];
const OUTPUT: [&str; 3] = ["output_link", "output_target", "output_target6"];

/// Its base chains and the rules that look packets up.
#[must_use]
pub(in crate::firewall) fn frame(name: &str) -> Nftables<'static> {
    let mut table = Table::new(name.to_owned());
    table.nat("prerouting", NfHook::Prerouting, DSTNAT);
    table.filter("input", NfHook::Input, FILTER, NfChainPolicy::Accept);
    table.filter("forward", NfHook::Forward, FILTER, NfChainPolicy::Accept);
    table.filter("output", NfHook::Output, FILTER, NfChainPolicy::Accept);
    table.nat("postrouting", NfHook::Postrouting, SRCNAT);

    let l4proto = || meta(MetaKey::L4proto);
    let dport = || header_field("th", "dport");
    for (family, daddr, exact, any) in [
        (
            "ipv4",
            header_field("ip", "daddr"),
            "published",
            "published_any",
        ),
        (
            "ipv6",
            header_field("ip6", "daddr"),
            "published6",
            "published_any6",
        ),
    ] {
        // That somebody listens there: a boolean, whichever.
        let listens = || compare(socket(), Operator::LEQ, Expression::Boolean(true));
        let of_family = || is(meta(MetaKey::Nfproto), super::name(family));
        let key = concat([daddr, l4proto(), dport()]);
        table.look_up("prerouting", [listens()], key, exact);
        let key = concat([l4proto(), dport()]);
        table.look_up("prerouting", [of_family(), listens()], key, any);
    }

    let (iif, oif) = (|| meta(MetaKey::Iifname), || meta(MetaKey::Oifname));
    let at = |field, protocol| header_field(protocol, field);
    for (chain, by_link, link, maps, field) in [
        ("input", "input-link", iif(), INPUT, "saddr"),
        ("forward", "forward-in", iif(), FORWARD_FROM, "saddr"),
        ("forward", "forward-out", oif(), FORWARD_TO, "daddr"),
        ("output", "output-link", oif(), OUTPUT, "daddr"),
    ] {
        let [of_link, four, six] = maps;
        let is_ours = |right: fn(_, _) -> _| right(link.clone(), super::name(LINKS));
        let there = Statement::Jump(JumpTarget {
            target: by_link.into(),
        });
        table.uncounted(chain, format!("to-{by_link}"), [is_ours(is)], there);
        table.look_up(chain, [is_ours(is_not)], at(field, "ip"), four);
        table.look_up(chain, [is_ours(is_not)], at(field, "ip6"), six);
        table.add_chain(Chain {
            name: by_link.into(),
            ..Chain::default()
        });
        // Who is found by the link comes back behind the jump; who is not is looked up as though by another's.
        table.look_up(by_link, [], link.clone(), of_link);
        table.look_up(by_link, [], at(field, "ip"), four);
        table.look_up(by_link, [], at(field, "ip6"), six);
    }
    let udp = is(l4proto(), super::name("udp"));
    let elsewhere = is_not(oif(), super::name(LINKS));
    let user = meta(MetaKey::Skuid);
    table.look_up("output", [elsewhere, udp], user, "output_user");

    table.look_up("postrouting", [], at("saddr", "ip"), "masqueraded");
    table.look_up("postrouting", [], at("saddr", "ip6"), "masqueraded6");
    table.into_rules()
}

fn socket() -> Expression<'static> {
    Expression::Named(NamedExpression::Socket(Socket {
        key: Cow::Borrowed(&SocketAttr::Wildcard),
    }))
}

impl Table {
    /// A rule that goes where a verdict map has it.
    fn look_up(
        &mut self,
        chain: &'static str,
        matches: impl IntoIterator<Item = Statement<'static>>,
        key: Expression<'static>,
        map: &'static str,
    ) {
        let data = super::name(&format!("@{map}"));
        let lookup = Statement::VerdictMap(VerdictMap { key, data });
        let name = format!("by-{}", map.replace('_', "-"));
        self.uncounted(chain, name, matches, lookup);
    }

    /// A rule that counts nothing: it would count every packet of the host.
    fn uncounted(
        &mut self,
        chain: &'static str,
        name: String,
        matches: impl IntoIterator<Item = Statement<'static>>,
        verdict: Statement<'static>,
    ) {
        let statements: Vec<_> = matches.into_iter().chain([verdict]).collect();
        self.objects.push(NfListObject::Rule(Rule {
            family: self.family,
            table: self.name.clone().into(),
            chain: chain.into(),
            expr: statements.into(),
            comment: Some(name.into()),
            ..Rule::default()
        }));
    }
}

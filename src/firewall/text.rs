//! The same rules in nft's own language, as `nft list table` prints them; `nft -f` reads them.

use std::fmt::Write as _;

use nftables::expr::{
    BinaryOperation, Expression, FibFlag, FibResult, MetaKey, NamedExpression, Payload,
    PayloadBase, PayloadRaw, SocketAttr,
};
use nftables::schema::{
    Chain, NfListObject, NfObject, Nftables, Rule, SetFlag, SetType, SetTypeValue,
};
use nftables::stmt::{Counter, Match, NAT, NATFamily, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

/// What can't be printed. Rulesets of this crate always can; a test says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("print {what}: not supported")]
pub struct TextError {
    /// The part that is unknown, as nft's JSON.
    pub what: String,
}

/// Prints `rules` in nft's language.
///
/// # Errors
/// [`TextError`] if they use more of nftables than this crate's rules do.
pub fn to_text(rules: &Nftables<'_>) -> Result<String, TextError> {
    let objects = || {
        rules.objects.iter().map(|object| match object {
            NfObject::ListObject(object) => Ok(object),
            NfObject::CmdObject(command) => Err(unsupported(command)),
        })
    };
    let mut out = String::new();
    let mut open = false;
    for object in objects() {
        match object? {
            NfListObject::Table(table) => {
                out.push_str(if open { "}\n\n" } else { "" });
                out.push_str(&format!(
                    "table {} {} {{\n",
                    family(table.family),
                    table.name
                ));
                open = true;
            }
            NfListObject::Set(set) => {
                if (&set.policy, set.gc_interval, &set.comment) != (&None, None, &None) {
                    return Err(unsupported(set));
                }
                let only = |flag| set.flags == Some([flag].into());
                let flags = match (set.size, set.timeout) {
                    (None, None) if set.flags.is_none() => String::new(),
                    (None, None) if only(SetFlag::Interval) => "\n\t\tflags interval".to_owned(),
                    (Some(most), Some(seconds)) if only(SetFlag::Timeout) => {
                        let time = match seconds {
                            3600 => "1h".to_owned(),
                            60 => "1m".to_owned(),
                            _ => format!("{seconds}s"),
                        };
                        format!("\n\t\tsize {most}\n\t\tflags dynamic,timeout\n\t\ttimeout {time}")
                    }
                    _ => return Err(unsupported(set)),
                };
                let elements = set.elem.as_deref().unwrap_or_default();
                let counted = match elements.first() {
                    Some(Expression::Named(NamedExpression::Elem(_))) => "\n\t\tcounter",
                    _ => "",
                };
                let elements = elements
                    .iter()
                    .map(expression)
                    .collect::<Result<Vec<_>, _>>()?;
                container(
                    &mut out,
                    "set",
                    &set.name,
                    &format!("{}{flags}{counted}", types(&set.set_type)?),
                    &elements,
                );
            }
            NfListObject::Map(map) => {
                if !super::encode::is_plain(map) {
                    return Err(unsupported(map));
                }
                let elements = map.elem.as_deref().unwrap_or_default();
                let elements = elements.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
                let types = format!("{} : {}", types(&map.set_type)?, types(&map.map)?);
                container(&mut out, "map", &map.name, &types, &elements);
            }
            NfListObject::Chain(chain) => {
                out.push_str(&format!("\tchain {} {{\n", chain.name));
                if chain.hook.is_some() {
                    out.push_str(&format!("\t\t{}\n", base(chain)?));
                }
                for object in objects() {
                    match object? {
                        NfListObject::Rule(rule)
                            if rule.table == chain.table && rule.chain == chain.name =>
                        {
                            out.push_str(&format!("\t\t{}\n", rule_text(rule)?));
                        }
                        _ => {}
                    }
                }
                out.push_str("\t}\n\n");
            }
            // Printed with its chain.
            NfListObject::Rule(_) => {}
            other => return Err(unsupported(other)),
        }
    }
    // Without the empty line after the last chain.
    out.truncate(out.trim_end().len());
    out.push_str(if open { "\n}\n" } else { "" });
    Ok(out)
}

fn container(out: &mut String, kind: &str, name: &str, types: &str, elements: &[String]) {
    out.push_str(&format!("\t{kind} {name} {{\n\t\ttype {types}\n"));
    if !elements.is_empty() {
        let elements = elements.join(",\n\t\t\t     ");
        out.push_str(&format!("\t\telements = {{ {elements} }}\n"));
    }
    out.push_str("\t}\n\n");
}

fn family(family: NfFamily) -> &'static str {
    match family {
        NfFamily::IP => "ip",
        NfFamily::IP6 => "ip6",
        NfFamily::INet => "inet",
        NfFamily::ARP => "arp",
        NfFamily::Bridge => "bridge",
        NfFamily::NetDev => "netdev",
    }
}

fn types(types: &SetTypeValue<'_>) -> Result<String, TextError> {
    let name = |of: &SetType| match of {
        SetType::Ipv4Addr => Ok("ipv4_addr"),
        SetType::Ipv6Addr => Ok("ipv6_addr"),
        SetType::EtherAddr => Ok("ether_addr"),
        SetType::InetProto => Ok("inet_proto"),
        SetType::InetService => Ok("inet_service"),
        other => Err(unsupported(other)),
    };
    match types {
        SetTypeValue::Single(single) => name(single).map(str::to_owned),
        SetTypeValue::Concatenated(several) => Ok(several
            .iter()
            .map(name)
            .collect::<Result<Vec<_>, _>>()?
            .join(" . ")),
    }
}

fn base(chain: &Chain<'_>) -> Result<String, TextError> {
    let (Some(kind), Some(hook), Some(priority), Some(policy)) =
        (chain._type, chain.hook, chain.prio, chain.policy)
    else {
        return Err(unsupported(chain));
    };
    let kind = match kind {
        NfChainType::Filter => "filter",
        NfChainType::NAT => "nat",
        NfChainType::Route => "route",
    };
    let priority = match (hook, priority) {
        (_, -300) => "raw".to_owned(),
        (NfHook::Prerouting, -100) => "dstnat".to_owned(),
        (_, 0) => "filter".to_owned(),
        (NfHook::Postrouting, 100) => "srcnat".to_owned(),
        (_, number) => number.to_string(),
    };
    let hook = match hook {
        NfHook::Prerouting => "prerouting",
        NfHook::Input => "input",
        NfHook::Forward => "forward",
        NfHook::Output => "output",
        NfHook::Postrouting => "postrouting",
        NfHook::Ingress => "ingress",
        NfHook::Egress => "egress",
    };
    let device = match &chain.dev {
        Some(link) => format!(" device \"{link}\""),
        None => String::new(),
    };
    let policy = match policy {
        NfChainPolicy::Accept => "accept",
        NfChainPolicy::Drop => "drop",
    };
    Ok(format!(
        "type {kind} hook {hook}{device} priority {priority}; policy {policy};"
    ))
}

fn rule_text(rule: &Rule<'_>) -> Result<String, TextError> {
    let statements = rule
        .expr
        .iter()
        .map(statement)
        .collect::<Result<Vec<_>, _>>()?;
    let mut text = statements.join(" ");
    if let Some(comment) = &rule.comment {
        // A quoted string of nft's language has no escapes.
        if comment.contains(['"', '\n']) {
            return Err(unsupported(comment));
        }
        write!(text, " comment \"{comment}\"").expect("writing to a string can't fail");
    }
    Ok(text)
}

fn statement(statement: &Statement<'_>) -> Result<String, TextError> {
    Ok(match statement {
        Statement::Match(comparison) => compare(comparison)?,
        Statement::Counter(Counter::Anonymous(values)) => {
            let (packets, bytes) = values.as_ref().map_or((0, 0), |values| {
                (
                    values.packets.unwrap_or_default(),
                    values.bytes.unwrap_or_default(),
                )
            });
            format!("counter packets {packets} bytes {bytes}")
        }
        Statement::Accept(_) => "accept".to_owned(),
        Statement::Drop(_) => "drop".to_owned(),
        Statement::Jump(jump) => format!("jump {}", jump.target),
        Statement::Return(_) => "return".to_owned(),
        Statement::Masquerade(None) => "masquerade".to_owned(),
        Statement::Mangle(change) => {
            format!(
                "{} set {}",
                expression(&change.key)?,
                expression(&change.value)?
            )
        }
        Statement::Log(Some(log)) => {
            let (Some(group), None, None, None, None) = (
                log.group,
                log.snaplen,
                log.queue_threshold,
                &log.level,
                &log.flags,
            ) else {
                return Err(unsupported(statement));
            };
            match &log.prefix {
                Some(prefix) => format!("log prefix \"{prefix}\" group {group}"),
                None => format!("log group {group}"),
            }
        }
        Statement::Limit(limit) => {
            let (None, None, Some(per), Some(burst), Some(true)) = (
                &limit.rate_unit,
                &limit.burst_unit,
                &limit.per,
                limit.burst,
                limit.inv,
            ) else {
                return Err(unsupported(statement));
            };
            let mut text = format!("limit rate over {}/{per}", limit.rate);
            // nft leaves out what it would take anyway.
            if burst != 5 {
                write!(text, " burst {burst} packets").expect("writing to a string can't fail");
            }
            text
        }
        Statement::Meter(meter) => format!(
            "update @{} {{ {} {} }}",
            meter.name,
            expression(&meter.key)?,
            self::statement(&meter.stmt)?
        ),
        Statement::DNAT(Some(nat)) => translate("dnat", nat, statement)?,
        Statement::SNAT(Some(nat)) => translate("snat", nat, statement)?,
        other => return Err(unsupported(other)),
    })
}

fn translate(verb: &str, nat: &NAT<'_>, statement: &Statement<'_>) -> Result<String, TextError> {
    let (Some(address), Some(family), None) = (&nat.addr, nat.family, &nat.flags) else {
        return Err(unsupported(statement));
    };
    let family = match family {
        NATFamily::IP => "ip",
        NATFamily::IP6 => "ip6",
    };
    let mut to = expression(address)?;
    if nat.port.is_some() && matches!(address, Expression::String(text) if text.contains(':')) {
        to = format!("[{to}]");
    }
    let mut text = format!("{verb} {family} to {to}");
    if let Some(port) = &nat.port {
        write!(text, ":{}", expression(port)?).expect("writing to a string can't fail");
    }
    Ok(text)
}

fn compare(comparison: &Match<'_>) -> Result<String, TextError> {
    let Match { left, right, op } = comparison;
    let not = match op {
        Operator::EQ | Operator::IN => "",
        Operator::NEQ => "!= ",
        Operator::GEQ => ">= ",
        _ => return Err(unsupported(comparison)),
    };
    if let Expression::BinaryOperation(operation) = left {
        if let BinaryOperation::AND(field, Expression::Number(bits)) = operation.as_ref()
            && let Expression::Number(value) = right
        {
            let field = expression(field)?;
            return Ok(format!("{field} & {bits:#x} {not}{value:#x}"));
        }
        let BinaryOperation::AND(field, Expression::List(bits)) = operation.as_ref() else {
            return Err(unsupported(comparison));
        };
        let bits = bits
            .iter()
            .map(expression)
            .collect::<Result<Vec<_>, _>>()?
            .join(",");
        return Ok(format!(
            "{} {not}{} / {bits}",
            expression(field)?,
            expression(right)?
        ));
    }
    let link = matches!(
        left,
        Expression::Named(NamedExpression::Meta(meta)) if matches!(meta.key, MetaKey::Iifname | MetaKey::Oifname)
    );
    let quote = if link { "\"" } else { "" };
    let time = matches!(
        left,
        Expression::Named(NamedExpression::CT(ct)) if ct.key == "expiration"
    );
    let unit = if time { "s" } else { "" };
    Ok(format!(
        "{} {not}{quote}{}{unit}{quote}",
        expression(left)?,
        expression(right)?
    ))
}

fn expression(what: &Expression<'_>) -> Result<String, TextError> {
    Ok(match what {
        Expression::String(text) => text.clone().into_owned(),
        Expression::Number(number) => number.to_string(),
        Expression::Boolean(true) => "exists".to_owned(),
        Expression::Range(range) => {
            let [first, last] = &range.range;
            format!("{}-{}", expression(first)?, expression(last)?)
        }
        // Several bits.
        Expression::List(bits) => bits
            .iter()
            .map(expression)
            .collect::<Result<Vec<_>, _>>()?
            .join(","),
        Expression::Named(named) => match named {
            NamedExpression::Concat(parts) => parts
                .iter()
                .map(expression)
                .collect::<Result<Vec<_>, _>>()?
                .join(" . "),
            NamedExpression::Prefix(prefix) => {
                format!("{}/{}", expression(&prefix.addr)?, prefix.len)
            }
            NamedExpression::Elem(element) => {
                let (None, None, Some(comment), Some(counter)) = (
                    element.timeout,
                    element.expires,
                    &element.comment,
                    &element.counter,
                ) else {
                    return Err(unsupported(what));
                };
                format!(
                    "{} {} comment \"{comment}\"",
                    expression(&element.val)?,
                    statement(&Statement::Counter(counter.clone()))?
                )
            }
            NamedExpression::Map(map) => {
                format!("{} map {}", expression(&map.key)?, expression(&map.data)?)
            }
            NamedExpression::Payload(Payload::PayloadField(field)) => {
                format!("{} {}", field.protocol, field.field)
            }
            NamedExpression::Payload(Payload::PayloadRaw(PayloadRaw {
                base: PayloadBase::TH,
                offset,
                len,
            })) => format!("@th,{offset},{len}"),
            NamedExpression::Exthdr(header) if header.field.is_none() => {
                format!("exthdr {}", header.name)
            }
            NamedExpression::Meta(meta) => match meta.key {
                MetaKey::Iifname => "iifname".to_owned(),
                MetaKey::Oifname => "oifname".to_owned(),
                MetaKey::Nfproto => "meta nfproto".to_owned(),
                MetaKey::L4proto => "meta l4proto".to_owned(),
                MetaKey::Skuid => "meta skuid".to_owned(),
                MetaKey::Mark => "meta mark".to_owned(),
                MetaKey::Pkttype => "meta pkttype".to_owned(),
                _ => return Err(unsupported(what)),
            },
            NamedExpression::CT(ct) if ct.family.is_none() && ct.dir.is_none() => {
                format!("ct {}", ct.key)
            }
            NamedExpression::Fib(fib)
                if fib.result == FibResult::Type
                    && fib.flags.len() == 1
                    && fib.flags.contains(&FibFlag::Daddr) =>
            {
                "fib daddr type".to_owned()
            }
            NamedExpression::Socket(socket) if *socket.key == SocketAttr::Transparent => {
                "socket transparent".to_owned()
            }
            _ => return Err(unsupported(what)),
        },
        other => return Err(unsupported(other)),
    })
}

/// An element of a map.
fn pair(element: &Expression<'_>) -> Result<String, TextError> {
    match element {
        Expression::List(pair) if pair.len() == 2 => Ok(format!(
            "{} : {}",
            expression(&pair[0])?,
            expression(&pair[1])?
        )),
        other => Err(unsupported(other)),
    }
}

fn unsupported(what: &impl serde::Serialize) -> TextError {
    TextError {
        what: serde_json::to_string(what).expect("the crate's types have string keys only"),
    }
}

//! Values of settings: how each is written, read and printed. One grammar for `MeshConfig` and annotations.

use std::fmt::Write as _;
use std::time::Duration;

use ipnet::IpNet;

/// A value that can be written in a `MeshConfig` or an annotation.
pub trait SettingValue: Sized {
    /// What is accepted, for messages and the reference page.
    const EXPECTED: &'static str;

    /// None when `text` is not such a value.
    fn parse(text: &str) -> Option<Self>;

    /// As it would be written.
    fn text(&self) -> String;
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident $expected:literal { $($(#[$vdoc:meta])* $variant:ident $text:literal),+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl SettingValue for $name {
            const EXPECTED: &'static str = $expected;

            fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some($name::$variant),)+ _ => None }
            }

            fn text(&self) -> String {
                match self { $($name::$variant => $text),+ }.to_owned()
            }
        }
    };
}

choice!(
    /// What a workload accepts from clients outside the mesh.
    InboundMode "`permissive` or `strict`" {
        /// Plaintext is accepted.
        Permissive "permissive",
        /// Only mutual TLS is accepted, the kubelet's declared probes apart.
        Strict "strict"
    }
);
choice!(
    /// What happens to connections to addresses outside the cluster that no Service names.
    OutboundPolicy "`allow` or `registry-only`" {
        /// They pass.
        Allow "allow",
        /// They are refused.
        RegistryOnly "registry-only"
    }
);
choice!(
    /// What happens to a workload's UDP traffic.
    UdpPolicy "`allow` or `deny`" {
        /// It passes as it is.
        Allow "allow",
        /// It is dropped.
        Deny "deny"
    }
);
choice!(
    /// Whether something is done.
    Switch "`enabled` or `disabled`" {
        /// It is.
        Enabled "enabled",
        /// It is not.
        Disabled "disabled"
    }
);
choice!(
    /// Which connections get an access log line.
    AccessLogFilter "`failures`, `all` or `none`" {
        /// Those that failed or were refused.
        Failures "failures",
        /// Every one.
        All "all",
        /// None.
        None "none"
    }
);
choice!(
    /// How access log lines are written.
    AccessLogFormat "`json` or `text`" {
        /// One JSON object per line.
        Json "json",
        /// `key=value` pairs.
        Text "text"
    }
);

/// First and last port, both included; first is not above last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

/// Ports and ranges of ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortRanges(pub Vec<PortRange>);

/// Address ranges, IPv4 and IPv6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cidrs(pub Vec<IpNet>);

/// Inbound modes of single ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortModes(pub Vec<(u16, InboundMode)>);

/// A count or number of at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u32);

/// A share of a whole, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percent(pub u8);

/// A packet mark or mask, printed in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u32);

/// A TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port(pub u16);

/// An amount of memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

/// The size of a request's head in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadBytes(pub u32);

/// The name of a trust root: 1 to 255 of a-z, 0-9, `.`, `-`, `_`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomainName(pub String);

/// Several trust domains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustDomainNames(pub Vec<TrustDomainName>);

/// The elements of `a, b,c`; none for the empty text.
fn elements(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(move |element| !(element.is_empty() && text.trim().is_empty()))
}

fn list<T>(text: &str, one: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    elements(text).map(one).collect()
}

fn join(elements: impl Iterator<Item = String>) -> String {
    elements.collect::<Vec<_>>().join(",")
}

fn port(text: &str) -> Option<u16> {
    text.trim().parse().ok().filter(|port| *port != 0)
}

impl SettingValue for PortRanges {
    const EXPECTED: &'static str = "ports and ranges, as `22,8000-8099`";

    fn parse(text: &str) -> Option<Self> {
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let range = PortRange { first: port(first)?, last: port(last)? };
            (range.first <= range.last).then_some(range)
        };
        list(text, range).map(Self)
    }

    fn text(&self) -> String {
        join(self.0.iter().map(|range| match range {
            PortRange { first, last } if first == last => first.to_string(),
            PortRange { first, last } => format!("{first}-{last}"),
        }))
    }
}

impl SettingValue for Cidrs {
    const EXPECTED: &'static str = "address ranges, as `10.1.0.0/16,fd00::/8`";

    fn parse(text: &str) -> Option<Self> {
        let range = |text: &str| match text.parse::<IpNet>() {
            Ok(range) => Some(range.trunc()),
            Err(_) => text.parse::<std::net::IpAddr>().ok().map(IpNet::from),
        };
        list(text, range).map(Self)
    }

    fn text(&self) -> String {
        join(self.0.iter().map(ToString::to_string))
    }
}

impl SettingValue for PortModes {
    const EXPECTED: &'static str = "ports with a mode each, as `8080=strict,9090=permissive`";

    fn parse(text: &str) -> Option<Self> {
        let one = |text: &str| {
            let (number, mode) = text.split_once('=')?;
            Some((port(number)?, InboundMode::parse(mode.trim())?))
        };
        let modes = list(text, one)?;
        let mut ports: Vec<u16> = modes.iter().map(|(port, _)| *port).collect();
        ports.sort_unstable();
        ports.windows(2).all(|pair| pair[0] != pair[1]).then_some(Self(modes))
    }

    fn text(&self) -> String {
        join(self.0.iter().map(|(port, mode)| format!("{port}={}", mode.text())))
    }
}

impl SettingValue for Count {
    const EXPECTED: &'static str = "a whole number of at least 1";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|count| *count != 0).map(Self)
    }

    fn text(&self) -> String {
        self.0.to_string()
    }
}

impl SettingValue for Percent {
    const EXPECTED: &'static str = "a whole number from 0 to 100, in percent";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|share| *share <= 100).map(Self)
    }

    fn text(&self) -> String {
        self.0.to_string()
    }
}

impl SettingValue for Mark {
    const EXPECTED: &'static str = "a number from 1 to 0xffffffff, decimal or hexadecimal";

    fn parse(text: &str) -> Option<Self> {
        let number = match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        number.ok().filter(|mark| *mark != 0).map(Self)
    }

    fn text(&self) -> String {
        format!("{:#x}", self.0)
    }
}

impl SettingValue for Port {
    const EXPECTED: &'static str = "a port from 1 to 65535";

    fn parse(text: &str) -> Option<Self> {
        port(text).map(Self)
    }

    fn text(&self) -> String {
        self.0.to_string()
    }
}

const BYTE_UNITS: [(&str, u64); 3] = [("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];

fn parse_bytes(text: &str) -> Option<u64> {
    let unit = BYTE_UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (digits, factor) = unit.unwrap_or((text, 1));
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

fn bytes_text(amount: u64) -> String {
    let unit = BYTE_UNITS.iter().find(|(_, bytes)| amount.is_multiple_of(*bytes));
    unit.map_or_else(|| amount.to_string(), |(unit, bytes)| format!("{}{unit}", amount / bytes))
}

impl SettingValue for HeadBytes {
    const EXPECTED: &'static str = "a size from 1Ki to 128Ki, as `64Ki`";

    fn parse(text: &str) -> Option<Self> {
        let bytes = parse_bytes(text).filter(|bytes| (1 << 10..=128 << 10).contains(bytes))?;
        u32::try_from(bytes).ok().map(Self)
    }

    fn text(&self) -> String {
        bytes_text(self.0.into())
    }
}

impl SettingValue for Bytes {
    const EXPECTED: &'static str = "an amount of memory of at least 1Mi, as `256Mi` or `1Gi`";

    fn parse(text: &str) -> Option<Self> {
        // Below this not even one stream's window fits.
        parse_bytes(text).filter(|bytes| *bytes >= 1 << 20).map(Self)
    }

    fn text(&self) -> String {
        bytes_text(self.0)
    }
}

const TIME_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl SettingValue for Duration {
    const EXPECTED: &'static str = "a duration from 1ms to 24h, as `500ms`, `5s` or `1m30s`";

    fn parse(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut millis: u64 = 0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let number: u64 = rest[..digits].parse().ok()?;
            rest = &rest[digits..];
            let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let factor =
                TIME_UNITS.iter().find_map(|(unit, factor)| (*unit == &rest[..end]).then_some(*factor))?;
            millis = millis.checked_add(number.checked_mul(factor)?)?;
            rest = &rest[end..];
        }
        (1..=24 * 3_600_000).contains(&millis).then_some(Duration::from_millis(millis))
    }

    fn text(&self) -> String {
        let mut rest = u64::try_from(self.as_millis()).unwrap_or(u64::MAX);
        let mut text = String::new();
        for (unit, factor) in TIME_UNITS {
            if rest >= factor {
                // Writing to a string cannot fail.
                let _ = write!(text, "{}{unit}", rest / factor);
                rest %= factor;
            }
        }
        text
    }
}

impl SettingValue for TrustDomainName {
    const EXPECTED: &'static str = "a trust domain: 1 to 255 of a-z, 0-9, `.`, `-`, `_`";

    fn parse(text: &str) -> Option<Self> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        let valid = !text.is_empty() && text.len() <= 255 && text.chars().all(allowed);
        valid.then(|| Self(text.to_owned()))
    }

    fn text(&self) -> String {
        self.0.clone()
    }
}

impl SettingValue for TrustDomainNames {
    const EXPECTED: &'static str = "a list of trust domains";

    fn parse(text: &str) -> Option<Self> {
        list(text, TrustDomainName::parse).map(Self)
    }

    fn text(&self) -> String {
        join(self.0.iter().map(SettingValue::text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again<T: SettingValue>(text: &str) -> Option<String> {
        T::parse(text).map(|value| value.text())
    }

    #[test]
    fn values_read_as_they_are_written() {
        assert_eq!(again::<PortRanges>("1-10, 22").as_deref(), Some("1-10,22"));
        assert_eq!(again::<PortRanges>("").as_deref(), Some(""));
        assert_eq!(again::<Cidrs>("10.1.2.3/8,::1").as_deref(), Some("10.0.0.0/8,::1/128"));
        assert_eq!(again::<PortModes>("8080=strict").as_deref(), Some("8080=strict"));
        assert_eq!(again::<Duration>("90s").as_deref(), Some("1m30s"));
        assert_eq!(again::<Bytes>("262144Ki").as_deref(), Some("256Mi"));
        assert_eq!(again::<HeadBytes>("65536").as_deref(), Some("64Ki"));
        assert_eq!(again::<Mark>("1337").as_deref(), Some("0x539"));
    }

    #[test]
    fn what_is_not_a_value_is_refused() {
        assert!(["0", "10-1", "1,,2", "80a", "65536"].iter().all(|text| PortRanges::parse(text).is_none()));
        assert!(["10.0.0.0/33", "x"].iter().all(|text| Cidrs::parse(text).is_none()));
        assert!(
            ["8080", "8080=loose", "1=strict,1=strict"].iter().all(|text| PortModes::parse(text).is_none())
        );
        assert!(["5", "0s", "s", "1d", "25h", "-1s", ""].iter().all(|text| Duration::parse(text).is_none()));
        assert!(["1", "1Ti", "x"].iter().all(|text| Bytes::parse(text).is_none()));
        assert!(["1", "1023", "129Ki", "1Mi"].iter().all(|text| HeadBytes::parse(text).is_none()));
        assert!(["101", "-1", "50%", ""].iter().all(|text| Percent::parse(text).is_none()));
        assert!(InboundMode::parse("Strict").is_none() && Count::parse("0").is_none());
    }
}

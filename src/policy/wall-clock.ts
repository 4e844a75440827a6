/** What a clock on a wall in some time zone shows. */
export interface WallClock {
  hour: number;
  minute: number;
  /** 0 is Sunday. */
  weekday: number;
  /** `2026-03-02` */
  date: string;
}

const formats = new Map<string, Intl.DateTimeFormat>();
const minutes = new Map<string, { minute: number; shows: WallClock }>();
const weekdays = ['Sun', 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat'];

export function isTimeZone(name: string): boolean {
  // An offset such as +01:00 is accepted by the platform, but does not know summer time: what is meant is a place.
  if (!/^[A-Za-z][A-Za-z0-9_+/-]{0,63}$/.test(name)) return false;
  try {
    new Intl.DateTimeFormat('en', { timeZone: name });
    return true;
  } catch {
    return false;
  }
}

/** `zone` was checked when the policy was loaded. Asked for the same minute again and again, it is looked up once. */
export function wallClock(now: Date, zone: string): WallClock {
  const minute = Math.floor(now.getTime() / 60_000);
  const last = minutes.get(zone);
  if (last?.minute === minute) return last.shows;
  if (zone === 'UTC') {
    const shows = {
      hour: now.getUTCHours(),
      minute: now.getUTCMinutes(),
      weekday: now.getUTCDay(),
      date: now.toISOString().slice(0, 10),
    };
    minutes.set(zone, { minute, shows });
    return shows;
  }
  let format = formats.get(zone);
  if (format === undefined) {
    const options = { timeZone: zone, hourCycle: 'h23', year: 'numeric', month: '2-digit', day: '2-digit' } as const;
    format = new Intl.DateTimeFormat('en', { ...options, hour: '2-digit', minute: '2-digit', weekday: 'short' });
    formats.set(zone, format);
  }
  const parts = new Map(format.formatToParts(now).map(({ type, value }) => [type, value]));
  const shows: WallClock = {
    hour: Number(parts.get('hour')),
    minute: Number(parts.get('minute')),
    weekday: weekdays.indexOf(parts.get('weekday')!),
    date: `${parts.get('year')}-${parts.get('month')}-${parts.get('day')}`,
  };
  minutes.set(zone, { minute, shows });
  return shows;
}

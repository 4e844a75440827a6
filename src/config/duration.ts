import type { Millis } from '../domain/time.ts';

const units = { d: 86_400_000, h: 3_600_000, m: 60_000, s: 1_000, ms: 1 } as const;
// Largest unit first and each at most once, so that every duration has one obvious reading.
const pattern =
  /^(?=[0-9])(?:([0-9]{1,6})d)?(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s)?(?:([0-9]{1,6})ms)?$/;

/** Reads `30s`, `10m`, `1h30m`, `7d`; undefined when the text is not a duration. */
export function parseDuration(text: string): Millis | undefined {
  const match = pattern.exec(text);
  if (match === null) return undefined;
  const scale = Object.values(units);
  return match.slice(1).reduce((sum, digits, index) => sum + Number(digits ?? 0) * scale[index]!, 0);
}

export function formatDuration(millis: Millis): string {
  let rest = Math.max(0, Math.round(millis));
  let text = '';
  for (const [unit, size] of Object.entries(units)) {
    const count = Math.floor(rest / size);
    if (count > 0) text += `${count}${unit}`;
    rest -= count * size;
  }
  return text === '' ? '0s' : text;
}

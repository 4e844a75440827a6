import { parseDuration } from '../config/duration.ts';
import type { Millis } from '../domain/time.ts';
import type { DefaultsDocument, TierSpec, ToolDocument, TtlSpec } from './documents.ts';

export const bounds = ['min', 'default', 'max'] as const;
export type Bound = (typeof bounds)[number];

export interface Ttl {
  min: Millis;
  default: Millis;
  max: Millis;
}

/** A duration and the level that says it. */
export interface Stated {
  text: string;
  millis: Millis;
  level: 'organisation' | 'tool' | 'tier';
}

export interface Inherited {
  /** What holds for the tier; a bound that no level states is missing. */
  ttl: Partial<Record<Bound, Stated>>;
  /** Levels that go beyond the bounds of a level above them. */
  beyond: { level: 'tool' | 'tier'; bound: Bound; message: string; hint: string }[];
}

/** Bounds on lives: the nearest level that states one holds, and no level goes beyond those above it. */
export function inheritTtl(
  defaults: DefaultsDocument | undefined,
  tool: ToolDocument | undefined,
  tier: TierSpec | undefined,
): Inherited {
  const levels: [Stated['level'], TtlSpec | undefined][] = [
    ['organisation', defaults?.spec.ttl],
    ['tool', tool?.spec.ttl],
    ['tier', tier?.ttl],
  ];
  const ttl: Inherited['ttl'] = {};
  const beyond: Inherited['beyond'] = [];
  for (const [level, spec] of levels) {
    const above = { ...ttl };
    for (const bound of bounds) {
      const text = spec?.[bound];
      if (text === undefined) continue;
      const millis = parseDuration(text)!;
      if (level !== 'organisation') {
        const { max, min } = above;
        const whose = (stated: Stated) => (stated.level === 'organisation' ? "the organisation's" : "the tool's");
        if (max !== undefined && millis > max.millis) {
          const message = `is longer than ${whose(max)} max (${text} > ${max.text})`;
          beyond.push({ level, bound, message, hint: 'a level may narrow the bounds above it, never widen them' });
        } else if (min !== undefined && millis < min.millis) {
          const message = `is shorter than ${whose(min)} min (${text} < ${min.text})`;
          beyond.push({ level, bound, message, hint: 'a level may narrow the bounds above it, never widen them' });
        }
      }
      ttl[bound] = { text, millis, level };
    }
    // A default that a nearer level's bounds have overtaken gives way to them: it was said for the general case.
    const { min, default: usual, max } = ttl;
    if (usual !== undefined && spec !== undefined && spec.default === undefined) {
      if (max !== undefined && max.level === level && usual.millis > max.millis) ttl.default = max;
      else if (min !== undefined && min.level === level && usual.millis < min.millis) ttl.default = min;
    }
  }
  return { ttl, beyond };
}

/** Once checked: all three are stated. */
export function ttlOf(defaults: DefaultsDocument | undefined, tool: ToolDocument, tier: TierSpec): Ttl {
  const { ttl } = inheritTtl(defaults, tool, tier);
  return { min: ttl.min!.millis, default: ttl.default!.millis, max: ttl.max!.millis };
}

import type { Instant, Millis } from '../domain/time.ts';

export type KeyState = 'published' | 'active' | 'retired';

/** The times of one signing key: in the JWKS from creation to `deleteAt`, signing from `activatesAt` to `retiresAt`. */
export interface KeyTimes {
  kid: string;
  state: KeyState;
  activatesAt: Instant;
  retiresAt: Instant;
  deleteAt: Instant;
}

export interface RotationSettings {
  /** How long a key signs. */
  rotateEvery: Millis;
  /** How long a key is in the JWKS before it signs: at least `cacheAge`, or verifiers meet a kid that they do not know. */
  publishAhead: Millis;
  /** Longest life of a token. */
  maxTokenLife: Millis;
  /** How long a verifier may keep a JWKS. */
  cacheAge: Millis;
  /** Clock difference that verifiers allow. */
  skew: Millis;
}

export type RotationStep =
  | { do: 'create'; state: 'published' | 'active'; activatesAt: Instant; retiresAt: Instant; deleteAt: Instant }
  | { do: 'retire'; kid: string; deleteAt: Instant }
  | { do: 'activate'; kid: string; retiresAt: Instant; deleteAt: Instant }
  | { do: 'delete'; kid: string };

export function checkRotationSettings(settings: RotationSettings): void {
  for (const name of ['rotateEvery', 'publishAhead', 'maxTokenLife', 'cacheAge', 'skew'] as const) {
    const value = settings[name];
    if (!Number.isFinite(value) || value < 0) throw new RangeError(`${name}: must be a duration of 0 or more`);
  }
  if (settings.maxTokenLife <= 0) throw new RangeError('maxTokenLife: must be more than 0');
  if (settings.publishAhead < settings.cacheAge + settings.skew) {
    throw new RangeError(
      'publishAhead: must be at least cacheAge + skew, or verifiers meet keys that they do not know',
    );
  }
  if (settings.rotateEvery <= settings.publishAhead) {
    throw new RangeError('rotateEvery: must be longer than publishAhead');
  }
}

/** How long a key stays in the JWKS after it stopped signing, so that its last token verifies to its end. */
export function overlap(settings: RotationSettings): Millis {
  return settings.maxTokenLife + settings.cacheAge + settings.skew;
}

/** Latest expiry of a token signed with this key: verifiers that allow `skew` still find the key then. */
export function latestExpiry(key: Pick<KeyTimes, 'deleteAt'>, settings: RotationSettings): Instant {
  return key.deleteAt - settings.skew;
}

/**
 * The key that signs now, if any: the newest that is active or whose time to become active has come. A key past its
 * `retiresAt` without a successor goes on signing; `latestExpiry` shortens what it signs until nothing is left.
 */
export function signingKey<K extends KeyTimes>(
  keys: readonly K[],
  now: Instant,
  settings: RotationSettings,
): K | undefined {
  let best: K | undefined;
  for (const key of keys) {
    const signs = key.state === 'active' || (key.state === 'published' && key.activatesAt <= now);
    if (!signs || latestExpiry(key, settings) <= now) continue;
    if (best === undefined || key.activatesAt > best.activatesAt) best = key;
  }
  return best;
}

/** What has to change at `now`, in the order in which it has to be done. Pure; empty when all is well. */
export function planRotation(keys: readonly KeyTimes[], now: Instant, settings: RotationSettings): RotationStep[] {
  const steps: RotationStep[] = [];
  // A key that can sign no more is as good as deleted, whatever state it was left in (the broker was stopped for long).
  const live = keys.filter((key) => key.deleteAt > now);
  for (const key of keys) if (key.deleteAt <= now) steps.push({ do: 'delete', kid: key.kid });

  const active = live.find((key) => key.state === 'active');
  const published = live.find((key) => key.state === 'published');
  const activeSigns = active !== undefined && latestExpiry(active, settings) > now;

  const successorDue = published !== undefined && (!activeSigns || published.activatesAt <= now);
  if (active !== undefined && (successorDue || !activeSigns)) {
    steps.push({ do: 'retire', kid: active.kid, deleteAt: Math.max(active.deleteAt, now + overlap(settings)) });
  }
  if (successorDue) {
    steps.push({ do: 'activate', kid: published.kid, ...lifeFrom(Math.max(published.activatesAt, now), settings) });
    return steps;
  }
  if (!activeSigns) {
    // Nobody can hold a token of a key that does not exist yet: the first key need not wait for caches.
    steps.push({ do: 'create', state: 'active', activatesAt: now, ...lifeFrom(now, settings) });
  } else if (published === undefined && now >= active.retiresAt - settings.publishAhead) {
    // After a long stop the old key may not last until a full pre-publication is over; then the new one starts earlier.
    const fullLifeUntil = latestExpiry(active, settings) - settings.maxTokenLife;
    const wanted = Math.max(active.retiresAt, now + settings.publishAhead);
    const activatesAt = Math.max(now + 1, Math.min(wanted, fullLifeUntil));
    steps.push({ do: 'create', state: 'published', activatesAt, ...lifeFrom(activatesAt, settings) });
  }
  return steps;
}

function lifeFrom(activatesAt: Instant, settings: RotationSettings): { retiresAt: Instant; deleteAt: Instant } {
  const retiresAt = activatesAt + settings.rotateEvery;
  return { retiresAt, deleteAt: retiresAt + overlap(settings) };
}

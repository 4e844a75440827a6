import type { Millis } from '../domain/time.ts';

const maxSkew = 60_000;

/** What both kinds of attestor are told; a broker that starts with a wrong one must not start. */
export function checkSettings(of: string, settings: { audiences: string[]; maxLifetime: Millis; skew: Millis }): void {
  const { audiences, maxLifetime, skew } = settings;
  if (audiences.length === 0 || audiences.some((one) => one === '')) {
    throw new Error(`${of}: name at least one audience; without it any service's token would be accepted`);
  }
  if (!(skew >= 0 && skew <= maxSkew)) throw new Error(`${of}: skew must be between 0 and ${maxSkew} ms`);
  if (!(maxLifetime > 0 && Number.isFinite(maxLifetime))) throw new Error(`${of}: maxLifetime must be positive`);
}

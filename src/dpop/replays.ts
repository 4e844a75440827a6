import type { Instant } from '../domain/time.ts';

/** Proofs that were used, for as long as one of them could be used again. */
export interface ReplayStore {
  /**
   * Whether this proof may be used for `purpose` now: it was not used, or it was for the very same purpose (a request that
   * is sent again). `full` says that so many are remembered that another one cannot be.
   */
  use(proof: { jkt: string; jti: string; until: Instant }, purpose: string, now: Instant): 'fresh' | 'used' | 'full';
}

/** Bounded: beyond `most` proofs within their window no further one is taken, because what is forgotten could be replayed. */
export function createReplayStore(most = 100_000): ReplayStore {
  const used = new Map<string, { purpose: string; until: Instant }>();
  return {
    use: ({ jkt, jti, until }, purpose, now) => {
      const key = `${jkt} ${jti}`;
      const known = used.get(key);
      if (known !== undefined && known.until > now) return known.purpose === purpose ? 'fresh' : 'used';
      if (used.size >= most) {
        // They were put in about the order in which they run out.
        for (const [old, { until: end }] of used) {
          if (end > now && used.size < most) break;
          if (end <= now) used.delete(old);
        }
        if (used.size >= most) return 'full';
      }
      used.set(key, { purpose, until });
      return 'fresh';
    },
  };
}

import type { Detector } from './detector.ts';

/** A tier that a Tool document marks `canary` has no honest user: whoever uses it found it, and took it for real. */
export const canary: Detector = {
  name: 'canary',
  kind: 'canary_used',
  locks: true,
  look: ({ canary: marked, call }) =>
    marked
      ? {
          subject: { kind: 'agent', name: call.agent },
          reason: `${call.tool}:${call.tier} was used, which nobody should`,
        }
      : undefined,
};

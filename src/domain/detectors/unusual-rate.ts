import type { Detector } from './detector.ts';

/** Every call counts; the threshold is what makes them too many. Counted on each replica for itself. */
export const unusualRate: Detector = {
  name: 'unusualRate',
  kind: 'unusual_rate',
  look: ({ call }) => ({
    subject: { kind: 'workload', name: call.workload },
    reason: 'more recorded calls than the bound of the detector',
  }),
};

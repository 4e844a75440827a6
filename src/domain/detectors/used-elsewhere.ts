import { networkOf } from './network.ts';
import type { Detector } from './detector.ts';

/** Only a tool sees who comes: by another workload than it was issued to, or from two networks. */
export const usedElsewhere: Detector = {
  name: 'usedElsewhere',
  kind: 'used_elsewhere',
  look: ({ call, firstAddress }) => {
    if (call.reporter !== 'tool') return undefined;
    const subject = { kind: 'task', name: call.taskId } as const;
    if (call.violations.includes('other_workload')) {
      return { subject, reason: `${call.tool} saw a credential used by another workload than it was issued to` };
    }
    const address = call.peer?.address ?? '';
    const [here, before] = [networkOf(address), networkOf(firstAddress ?? '')];
    if (here === undefined || before === undefined || here === before) return undefined;
    return { subject, reason: `${call.tool} saw one credential used from ${before} and from ${here}` };
  },
};

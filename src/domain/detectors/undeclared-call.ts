import type { CallViolation } from '../calls/model.ts';
import type { Detector } from './detector.ts';

const undeclared: ReadonlySet<CallViolation> = new Set([
  'lease_unknown',
  'other_tool',
  'other_tier',
  'undeclared_tool',
  'undeclared_action',
  'other_arguments',
]);

/** Calls of what the task did not ask for, or of what its credential is not for. */
export const undeclaredCall: Detector = {
  name: 'undeclaredCall',
  kind: 'undeclared_call',
  look: ({ call }) => {
    const found = call.violations.filter((violation) => undeclared.has(violation));
    if (found.length === 0) return undefined;
    return { subject: { kind: 'task', name: call.taskId }, reason: `a recorded call: ${found.join(', ')}` };
  },
};

import type { ToolCall } from '../calls/model.ts';
import type { Subject } from '../signals/model.ts';
import type { Millis } from '../time.ts';

/** One recorded use of a credential, as detectors see it. */
export interface Use {
  call: Pick<
    ToolCall,
    'agent' | 'workload' | 'taskId' | 'tool' | 'tier' | 'leaseId' | 'reporter' | 'violations' | 'peer'
  >;
  /** The tier is one that nobody should ever use. */
  canary: boolean;
  /** Where the same credential was used first, as far as this replica knows. */
  firstAddress: string | undefined;
}

/** What a detector finds suspicious in a use: about whom, and why. Undefined: nothing. */
export type Finding = { subject: Subject; reason: string } | undefined;

export interface Detector {
  name: string;
  /** Kind of the signal that it emits. */
  kind: string;
  /** Beside the signal the agent is locked, where the settings say so: it can do no harm, whatever policy says. */
  locks?: true;
  /** Pure. A signal follows when it has found something `threshold` times about one subject within the window. */
  look: (use: Use) => Finding;
}

export interface DetectorSettings {
  enabled: boolean;
  threshold: number;
  window: Millis;
  /** How long its signal is in force; undefined: until it is cleared. */
  keep: Millis | undefined;
  /** Of a detector that can lock the agent. */
  lock?: boolean;
}

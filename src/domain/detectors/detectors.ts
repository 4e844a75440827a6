import type { ToolCall } from '../calls/model.ts';
import type { Locks } from '../locks/locks.ts';
import type { PolicySource } from '../policy.ts';
import { highestValue } from '../signals/model.ts';
import type { Signals } from '../signals/signals.ts';
import type { Emit } from '../telemetry.ts';
import type { Clock, Millis } from '../time.ts';
import { canary } from './canary.ts';
import type { Detector, DetectorSettings, Finding } from './detector.ts';
import { undeclaredCall } from './undeclared-call.ts';
import { unusualRate } from './unusual-rate.ts';
import { usedElsewhere } from './used-elsewhere.ts';
import { createWindowCounter } from './window.ts';

/** All detectors; the configuration switches each on or off and sets its threshold. */
export const detectors = { canary, usedElsewhere, undeclaredCall, unusualRate } as const satisfies Record<
  string,
  Detector
>;
export type DetectorName = keyof typeof detectors;

export interface DetectorsOptions {
  clock: Clock;
  policy: PolicySource;
  settings: Readonly<Record<DetectorName, DetectorSettings>>;
  signals: Pick<Signals, 'record'>;
  locks: Pick<Locks, 'place'>;
  newRequestId: () => string;
  emit: Emit;
}

const maxKeys = 20_000;
/** Signals that are being written; a flood of findings is about the same few subjects. */
const maxWriting = 32;

/** One lock for all that is found of an agent within this, so that lifting it is one act. */
const lockOnce: Millis = 600_000;

/** Looks at every recorded call. What it finds it says as a signal; policy decides what that means. */
export function createDetectors(options: DetectorsOptions) {
  const { clock, policy, emit } = options;
  const active = Object.values(detectors)
    .filter(({ name }) => options.settings[name as DetectorName].enabled)
    .map((detector) => {
      const settings = options.settings[detector.name as DetectorName];
      return { detector, settings, counter: createWindowCounter(settings.window, maxKeys) };
    });
  /** Where each credential was used first. */
  const addresses = new Map<string, string>();
  let writing = 0;

  return {
    /** Told after the commit of a record; quick, and never fails. */
    observe: (call: ToolCall): void => {
      if (active.length === 0) return;
      const now = clock.now();
      const use = {
        call,
        canary: policy.current(call.tenant).tools.get(call.tool)?.tiers[call.tier]?.canary === true,
        firstAddress: firstAddress(call),
      };
      for (const { detector, settings, counter } of active) {
        const finding = detector.look(use);
        if (finding === undefined) continue;
        const key = `${call.tenant}\n${finding.subject.kind}\n${finding.subject.name}`;
        if (counter.add(key, now) < settings.threshold || writing >= maxWriting) continue;
        // The next signal about it needs as many findings again.
        counter.reset(key);
        writing += 1;
        const acts = [tell(call.tenant, detector, settings, finding)];
        if (detector.locks === true && settings.lock !== false) acts.push(lock(call, detector, finding));
        void Promise.all(acts).finally(() => (writing -= 1));
      }
    },
  };

  /** Not left to policy: whatever uses a canary has shown that it is not what it should be. */
  async function lock(
    { tenant, agent }: ToolCall,
    { name }: Detector,
    { reason }: NonNullable<Finding>,
  ): Promise<void> {
    const { locks } = options;
    const source = `leasehold/detectors/${name}`;
    const requestId = `${name} ${agent} ${Math.floor(clock.now() / lockOnce)}`;
    try {
      await locks.place({
        tenant,
        scope: { kind: 'agent', agent },
        by: source,
        reason,
        requestId,
        expiresAt: undefined,
        settle: true,
      });
    } catch (error) {
      emit('storage.failed', { operation: 'detector-lock', error });
    }
  }

  async function tell(
    tenant: string,
    { name, kind }: Detector,
    { keep }: DetectorSettings,
    { subject, reason }: NonNullable<Finding>,
  ): Promise<void> {
    const source = `leasehold/detectors/${name}`;
    emit('detector.fired', { tenant, detector: name, subjectKind: subject.kind });
    try {
      await options.signals.record({
        tenant,
        source,
        reportedBy: 'broker',
        requestId: options.newRequestId(),
        digest: '',
        drafts: [
          {
            subject,
            kind,
            value: highestValue,
            reason,
            expiresAt: keep === undefined ? undefined : clock.now() + keep,
          },
        ],
      });
    } catch (error) {
      // The next finding says it again.
      emit('storage.failed', { operation: 'detector', error });
    }
  }

  function firstAddress({ tenant, leaseId, peer, reporter }: ToolCall): string | undefined {
    if (leaseId === undefined || reporter !== 'tool' || peer === undefined || peer.address === '') return undefined;
    const key = `${tenant} ${leaseId}`;
    const first = addresses.get(key);
    if (first === undefined) {
      addresses.set(key, peer.address);
      if (addresses.size > maxKeys) addresses.delete(addresses.keys().next().value!);
    }
    return first;
  }
}

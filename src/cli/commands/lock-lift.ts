import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';
import { identifier } from '../values.ts';

interface Options extends RemoteOptions {
  reason: string;
  requestId?: string;
}

export function lockLift(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'lift',
    summary: 'End a lock, or be the first of two who want it ended',
    description:
      'Ends a lock. Where two people are needed (locks.peopleToLift), the first call records the wish and the call of a ' +
      'different person within an hour lifts it. What a lock has closed stays closed: open new tasks.',
    examples: [
      [
        'leasehold lock lift lck_0198f1c2a4b57d3e8f60718293a4b5c6 --reason "INC-7: fixed in release 41"',
        'with a reason',
      ],
    ],
  });
  command
    .argument('<lock>', 'lock identifier', identifier('lck'))
    .requiredOption('--reason <text>', 'why it can go on; recorded');
  withRequestId(command).action(async (lockId: string, options: Options) => {
    const remote = await import('../remote.ts');
    const answer = await remote.connect(options).call(remote.LockService.method.liftLock, {
      requestId: options.requestId ?? randomUUID(),
      lockId,
      reason: options.reason,
    });
    if (options.json === true) {
      remote.jsonLine(remote.LiftLockResponseSchema, answer);
      return;
    }
    remote.showLock(answer.lock);
    if (answer.lock?.state === remote.LockState.ACTIVE) {
      remote.line(`in force until a second person lifts it as well: leasehold lock lift ${lockId} --reason …`);
    }
  });
}

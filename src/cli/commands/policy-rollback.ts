import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';

interface Options extends RemoteOptions {
  message?: string;
  reevaluate?: boolean;
  requestId?: string;
}

export function policyRollback(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'rollback',
    summary: 'Let an earlier policy revision run again',
    examples: [
      ['leasehold policy rollback sha256:0f1e2d3c', 'the beginning of a digest is enough'],
      ['leasehold policy rollback sha256:0f1e2d3c --reevaluate --message "incident 12"', 'end what it does not allow'],
    ],
  });
  command
    .argument('<digest>', 'digest of the revision, as `policy list` shows it')
    .option('--message <text>', 'why')
    .option('--reevaluate', 'decide open credentials again, and end those that are not allowed');
  withRequestId(command).action(async (digest: string, options: Options) => {
    const [remote, { changesOf, showChanges }] = await Promise.all([
      import('../remote.ts'),
      import('../policy-changes.ts'),
    ]);
    const answer = await remote.connect(options).call(remote.PolicyService.method.rollbackPolicy, {
      requestId: options.requestId ?? randomUUID(),
      digest,
      message: options.message ?? '',
      reevaluate: options.reevaluate ?? false,
    });
    if (options.json === true) {
      remote.jsonLine(remote.RollbackPolicyResponseSchema, answer);
      return;
    }
    showChanges(changesOf(answer.changes));
    remote.line(`revision ${answer.revision?.digest ?? ''} runs`);
  });
}

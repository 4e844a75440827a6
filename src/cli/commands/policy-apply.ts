import { randomUUID } from 'node:crypto';
import type { Command } from 'commander';
import { defineRemote, withRequestId, type RemoteOptions } from '../define.ts';

interface Options extends RemoteOptions {
  dryRun?: boolean;
  message?: string;
  reevaluate?: boolean;
  expect?: string;
  requestId?: string;
}

export function policyApply(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'apply',
    summary: 'Make a directory of policy documents the running revision',
    description:
      'Sends all documents of a directory (a git checkout is one) to the broker, which checks them, keeps them as an ' +
      'immutable revision and lets it run on every replica. What the directory does not hold is not policy any more. ' +
      'For brokers with policy: { source: database }; a dry run works with every broker.',
    examples: [
      ['leasehold policy apply policies --dry-run', 'what would change'],
      ['leasehold policy apply policies --message "reports for the analyst (OPS-7)"', 'let it run'],
      ['leasehold policy apply policies --reevaluate', 'and end at once what it no longer allows'],
    ],
  });
  command
    .argument('<directory>', 'folder of the policy documents')
    .option('--dry-run', 'check and compare only')
    .option('--message <text>', 'why; without it, the commit of a git checkout')
    .option('--reevaluate', 'decide open credentials again, and end those that are no longer allowed')
    .option('--expect <digest>', 'only while this revision runs, so that nobody’s change is overwritten unseen');
  withRequestId(command).action(async (directory: string, options: Options) => {
    const [remote, { readPolicyFiles, placed }, { gitCommit }, { changesOf, showChanges }] = await Promise.all([
      import('../remote.ts'),
      import('../policy-files.ts'),
      import('../../policy/git-checkout.ts'),
      import('../policy-changes.ts'),
    ]);
    const commit = options.message === undefined ? await gitCommit(directory) : undefined;
    const answer = await remote
      .connect(options)
      .call(remote.PolicyService.method.applyPolicy, {
        requestId: options.requestId ?? randomUUID(),
        files: await readPolicyFiles(directory),
        message: options.message ?? (commit === undefined ? '' : `git ${commit}`),
        dryRun: options.dryRun ?? false,
        reevaluate: options.reevaluate ?? false,
        expectedRevision: options.expect ?? '',
      })
      .catch((error: unknown) => {
        throw placed(error, directory);
      });
    if (options.json === true) {
      remote.jsonLine(remote.ApplyPolicyResponseSchema, answer);
      return;
    }
    showChanges(changesOf(answer.changes));
    const digest = answer.revision?.digest ?? '';
    remote.line(answer.activated ? `revision ${digest} runs` : `revision ${digest} would run; nothing was changed`);
    if (options.dryRun === true && options.reevaluate === true) {
      remote.line(`${answer.wouldEnd} of ${answer.lookedAt} open credentials would be ended`);
    }
  });
}

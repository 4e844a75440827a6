import { stat } from 'node:fs/promises';
import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';

export function policyDiff(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'diff',
    summary: 'Show what differs between two policies, rule by rule',
    description:
      'Compares two revisions, or a revision and a directory, or two directories. "running" is the revision that runs, ' +
      'and is compared when only one is named. Two directories need no broker.',
    examples: [
      ['leasehold policy diff policies', 'from what runs to a directory'],
      ['leasehold policy diff sha256:0f1e2d3c running', 'what was changed since'],
      ['leasehold policy diff before after', 'two directories'],
    ],
  });
  command
    .argument('<from>', 'digest, directory or "running"; alone: the one to compare the running revision with')
    .argument('[to]', 'digest, directory or "running"')
    .action(async (first: string, second: string | undefined, options: RemoteOptions) => {
      const [{ diffDocuments }, { showChanges }] = await Promise.all([
        import('../../domain/revision-diff.ts'),
        import('../policy-changes.ts'),
      ]);
      const [from, to] = second === undefined ? ['running', first] : [first, second];
      const changes = diffDocuments(await documents(from, options), await documents(to, options));
      if (options.json === true) process.stdout.write(`${JSON.stringify({ changes })}\n`);
      else showChanges(changes);
    });
}

async function documents(name: string, options: RemoteOptions): Promise<unknown[]> {
  const isDirectory = name !== 'running' && (await stat(name).catch(() => undefined))?.isDirectory() === true;
  if (isDirectory) {
    const [{ loadPolicyDirectory }, { describeRevision }, { policyInvalid }] = await Promise.all([
      import('../../policy/load-policy.ts'),
      import('../../policy/canonical.ts'),
      import('../policy-files.ts'),
    ]);
    const result = await loadPolicyDirectory(name);
    if (!result.ok) throw policyInvalid(result.issues);
    return JSON.parse(describeRevision(result.revision)) as unknown[];
  }
  const remote = await import('../remote.ts');
  const digest = name === 'running' ? '' : name;
  const answer = await remote.connect(options).call(remote.PolicyService.method.getRevision, { digest });
  return JSON.parse(answer.documents) as unknown[];
}

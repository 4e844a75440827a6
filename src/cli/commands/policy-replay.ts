import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { progressBar } from '../progress.ts';
import { count, duration } from '../values.ts';

interface Options extends RemoteOptions {
  candidate: string;
  since: number;
  agent?: string;
  tool?: string;
  samples: number;
}

export function policyReplay(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'replay',
    summary: 'Ask a candidate policy what was asked for real, and show what it would answer otherwise',
    description:
      'Reads the recorded decisions of a period from the broker and decides each again, here, under the candidate, with ' +
      'what policy saw then. Shows by agent and tool what would newly be denied, allowed or need approval, or live longer ' +
      'or shorter, with samples of each.',
    examples: [
      ['leasehold policy replay --candidate policies --since 7d', 'before applying it'],
      ['leasehold policy replay --candidate policies --since 1d --agent analyst --json', 'for a script'],
    ],
  });
  command
    .requiredOption('--candidate <directory>', 'folder of the candidate’s documents')
    .option('--since <duration>', 'how far back', duration, 7 * 86_400_000)
    .option('--agent <name>', 'only decisions about this agent')
    .option('--tool <name>', 'only decisions about this tool')
    .option('--samples <number>', 'samples of each difference', count(100), 3)
    .action(async (options: Options) => {
      const [remote, { replayDecisions }, { policyInvalid }, { loadPolicyDirectory }, { showReplay }] =
        await Promise.all([
          import('../remote.ts'),
          import('../replay.ts'),
          import('../policy-files.ts'),
          import('../../policy/load-policy.ts'),
          import('../replay-view.ts'),
        ]);
      // A mistake in the candidate is told before a long wait, not after it.
      const early = await loadPolicyDirectory(options.candidate);
      if (!early.ok) throw policyInvalid(early.issues);
      const bar = progressBar('decisions');
      const stream = remote.connect(options).stream(
        remote.PolicyService.method.streamDecisions,
        {
          since: remote.timestampFromMs(Date.now() - options.since),
          agent: options.agent ?? '',
          tool: options.tool ?? '',
        },
        false,
      );
      const result = await replayDecisions(stream, options.samples, (done, total) => bar.show(done, total), {
        compile: async (environment) => {
          const loaded = await loadPolicyDirectory(options.candidate, { environment });
          if (!loaded.ok) throw policyInvalid(loaded.issues);
          return loaded.revision;
        },
      }).finally(() => bar.end());
      if (options.json === true) process.stdout.write(`${JSON.stringify(result)}\n`);
      else showReplay(result);
    });
}

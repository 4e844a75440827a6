import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { pages } from '../pages.ts';
import { subjectOf, withSubject, type SubjectOptions } from '../signal-subject.ts';
import { count } from '../values.ts';

interface Options extends RemoteOptions, SubjectOptions {
  kind?: string[];
  past?: boolean;
  limit: number;
  pageToken?: string;
}

export function signalList(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'list',
    summary: 'List the signals in force',
    description: 'Lists the signals in force, by subject; a signal source sees its own.',
    examples: [
      ['leasehold signal list', 'all of them'],
      ['leasehold signal list --kind review_overdue', 'agents whose owner has to look at them'],
      ['leasehold signal list --agent reconciler --past', 'also what is over since yesterday'],
    ],
  });
  withSubject(command, 'only about')
    .option('--kind <kind...>', 'only of these kinds')
    .option('--past', 'also what was cleared or has run out in the last day')
    .option('--limit <number>', 'most signals to list', count(10_000), 100)
    .option('--page-token <token>', 'go on after an earlier list (next_page_token)')
    .action(async (options: Options) => {
      const subject = subjectOf(options);
      const remote = await import('../remote.ts');
      const client = remote.connect(options);
      const { items: signals, nextPageToken } = await pages(options, async (page) => {
        const answer = await client.call(remote.SignalService.method.listSignals, {
          ...page,
          kinds: options.kind ?? [],
          past: options.past ?? false,
          ...(subject === undefined ? {} : { subject }),
        });
        return { items: answer.signals, nextPageToken: answer.nextPageToken };
      });
      if (options.json === true) {
        const schema = remote.ListSignalsResponseSchema;
        remote.jsonLine(schema, remote.create(schema, { signals, nextPageToken }));
        return;
      }
      remote.showSignals(signals);
      if (nextPageToken !== '') remote.line(`more: --page-token ${nextPageToken}`);
    });
}

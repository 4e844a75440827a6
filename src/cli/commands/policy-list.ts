import type { Command } from 'commander';
import { defineRemote, type RemoteOptions } from '../define.ts';
import { pages } from '../pages.ts';
import { count } from '../values.ts';

interface Options extends RemoteOptions {
  revisions?: boolean;
  limit: number;
  pageToken?: string;
}

export function policyList(parent: Command): void {
  const command = defineRemote(parent, {
    name: 'list',
    summary: 'Show which policy revision ran when, newest first',
    examples: [
      ['leasehold policy list', 'the history'],
      ['leasehold policy list --revisions', 'every revision that was ever made'],
    ],
  });
  command
    .option('--revisions', 'the revisions instead of the history')
    .option('--limit <number>', 'most entries to list', count(10_000), 20)
    .option('--page-token <token>', 'go on after an earlier list (next_page_token)')
    .action(async (options: Options) => {
      const remote = await import('../remote.ts');
      const client = remote.connect(options);
      const source = (value: number) => (remote.RevisionSource[value] ?? '').toLowerCase();
      let next: string;
      if (options.revisions === true) {
        const { items, nextPageToken } = await pages(options, async (page) => {
          const answer = await client.call(remote.PolicyService.method.listRevisions, page);
          return { items: answer.revisions, nextPageToken: answer.nextPageToken };
        });
        next = nextPageToken;
        if (options.json === true) {
          const schema = remote.ListRevisionsResponseSchema;
          remote.jsonLine(schema, remote.create(schema, { revisions: items, nextPageToken }));
          return;
        }
        remote.table(
          ['REVISION', 'MADE', 'BY', 'SOURCE', '', 'MESSAGE'],
          items.map((revision) => [
            short(revision.digest),
            revision.createTime === undefined ? '' : remote.iso(revision.createTime),
            revision.creator,
            source(revision.source),
            revision.active ? { text: 'runs', tone: 'good' as const } : '',
            revision.message,
          ]),
        );
      } else {
        const { items, nextPageToken } = await pages(options, async (page) => {
          const answer = await client.call(remote.PolicyService.method.listActivations, page);
          return { items: answer.activations, nextPageToken: answer.nextPageToken };
        });
        next = nextPageToken;
        if (options.json === true) {
          const schema = remote.ListActivationsResponseSchema;
          remote.jsonLine(schema, remote.create(schema, { activations: items, nextPageToken }));
          return;
        }
        remote.table(
          ['SINCE', 'REVISION', 'BY', 'SOURCE', 'ENDED', 'MESSAGE'],
          items.map((activation) => [
            activation.activateTime === undefined ? '' : remote.iso(activation.activateTime),
            short(activation.digest),
            activation.actor,
            source(activation.source),
            ended(activation.reevaluation),
            activation.message,
          ]),
        );
      }
      if (next !== '') remote.line(`more: --page-token ${next}`);
    });
}

/** Enough to name it: `policy rollback` and `policy diff` take the beginning of a digest. */
function short(digest: string): string {
  return digest.slice(0, 'sha256:'.length + 12);
}

function ended(work: { decided: bigint; ended: bigint; finishTime?: object | undefined } | undefined): string {
  if (work === undefined) return '-';
  return `${work.ended} of ${work.decided}${work.finishTime === undefined ? ' so far' : ''}`;
}

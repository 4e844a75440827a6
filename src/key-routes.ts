import { jwksCacheAge, statusListTtl } from './root-bounds.ts';
import type { HttpRoute } from './server/http-route.ts';

export function jwksRoute(jwks: () => object): HttpRoute {
  return {
    method: 'GET',
    path: '/.well-known/jwks.json',
    handler: () => ({
      status: 200,
      headers: {
        'content-type': 'application/jwk-set+json',
        'cache-control': `public, max-age=${jwksCacheAge / 1_000}`,
      },
      body: JSON.stringify(jwks()),
    }),
  };
}

export function statusListRoute(list: (number: number) => Promise<string>): HttpRoute {
  return {
    method: 'GET',
    path: '/status-lists/*',
    handler: async ({ path }) => {
      const number = /^\/status-lists\/([0-9]{1,9})$/.exec(path)?.[1];
      if (number === undefined) return { status: 404 };
      return {
        status: 200,
        headers: {
          'content-type': 'application/statuslist+jwt',
          'cache-control': `public, max-age=${statusListTtl / 1_000}`,
        },
        body: await list(Number(number)),
      };
    },
  };
}
